"""The meeting of strategy, router and adapter: budgets to bounds, bounds to plans."""
