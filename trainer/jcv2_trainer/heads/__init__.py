"""Projection heads: initialised from a backbone, fitted without labels, or trained on frozen hidden states."""
