"""Redundancy of layers and tokens in a frozen model, as in Figure 2 of PAR (section 3)."""
