"""Projection heads: made from a backbone, fitted, or trained on frozen states."""
