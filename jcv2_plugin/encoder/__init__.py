"""The encoder: model, projection heads, checkpoint layouts and int8 quantisation."""

DEFAULT_MODEL = "jinaai/jina-colbert-v2"
"""Model of a new collection, and model to finetune, if none is named."""
