"""A frozen LVLM behind one contract."""
