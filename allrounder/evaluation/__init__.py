"""Accuracy and cost of strategies at budgets, on benchmarks run through the engine's runner."""
