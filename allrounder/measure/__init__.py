"""What training, evaluation and benchmarks measure with; knows none of them."""
