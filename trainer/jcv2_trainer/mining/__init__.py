"""Hard negatives and teacher scores for training files."""
