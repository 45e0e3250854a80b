"""The engines under a collection: Qdrant Edge in-process, and qdrant-client for everything else."""
