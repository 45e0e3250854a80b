"""Training loss: MaxSim at every projection head, InfoNCE and KL divergence."""
