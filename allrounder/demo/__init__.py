"""The embedded LVLM: its weights, procedural scenes and questions about them."""
