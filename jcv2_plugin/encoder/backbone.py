"""Load a backbone as a sentence-transformers module, for layouts other than sentence-transformers' own."""

from __future__ import annotations

import os
from typing import Any

from sentence_transformers.base.modules import Transformer


def text_transformer(folder: str | os.PathLike[str], model_kwargs: dict[str, Any]) -> Transformer:
    """Load the transformer and tokenizer of a local folder, with hidden states as output. Pickle is never loaded."""
    transformer: Transformer = Transformer(
        os.fspath(folder),
        model_kwargs={**model_kwargs, "use_safetensors": True},
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
    )
    return transformer
