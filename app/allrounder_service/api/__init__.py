"""The HTTP API: reads bodies, submits requests to the engine's facade, writes answers."""
