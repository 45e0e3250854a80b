"""Evaluate retrieval: test sets in BEIR layout, metrics, BM25 and studies."""
