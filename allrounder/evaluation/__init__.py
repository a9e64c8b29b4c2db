"""Quality at a price: benchmarks run through the engine's own runner."""
