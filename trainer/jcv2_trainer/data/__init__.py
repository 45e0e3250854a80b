"""Reading, checking and batching of training data."""
