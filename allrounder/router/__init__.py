"""The meta-router: the network, and the folder its weights lie in."""
