"""MaxSim outside the engine: reranking, MMR and explanations."""
