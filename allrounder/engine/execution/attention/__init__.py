"""Attention backends behind one contract: `sdpa` everywhere."""
