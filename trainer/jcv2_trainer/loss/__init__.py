"""The training loss: MaxSim of every head, InfoNCE and KL divergence."""
