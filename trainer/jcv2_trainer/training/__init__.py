"""Training runs: preparation, trainer, checkpoints and results."""
