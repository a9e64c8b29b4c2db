"""The HTTP face: reads bodies, calls the engine's facade, writes answers."""
