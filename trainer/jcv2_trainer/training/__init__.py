"""Training runs: settings, the trainer, checkpoints and the result."""
