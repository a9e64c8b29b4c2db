"""The forward pass of a ragged batch, its KV cache, and the sampling of tokens."""
