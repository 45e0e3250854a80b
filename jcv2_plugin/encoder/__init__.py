"""The encoder: model, projection heads, checkpoint layouts and int8 quantisation."""
