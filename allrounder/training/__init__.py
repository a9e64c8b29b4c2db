"""Trains and calibrates the meta-router on unlabelled images and questions; the LVLM is frozen."""
