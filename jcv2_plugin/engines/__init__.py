"""Storage engines: Qdrant Edge in-process, qdrant-client for servers and local mode."""
