"""Commands of the library: train, evaluate, bench. The service assembles them."""
