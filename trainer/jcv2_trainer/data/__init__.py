"""Training data: reading, checking, and batching rows."""
