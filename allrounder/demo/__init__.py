"""The embedded LVLM: procedural scenes, questions about them, training and evaluation."""
