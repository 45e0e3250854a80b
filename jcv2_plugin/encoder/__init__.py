"""Encode texts: the model, its projection heads, every layout it is loaded from, and int8."""
