"""fastembed's ``JinaColbert`` on an ONNX export of the checkpoint.

fastembed has no custom models for late interaction, but its classes take a local folder
(``specific_model_path``). ``JinaColbert`` does what the checkpoint asks for (markers, attended [MASK] tokens, skip
list); only the ids and the mask's name are of another vocabulary, and they are attributes of the class.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from fastembed.late_interaction.jina_colbert import JinaColbert
from onnx_export import export_onnx
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer
from worker import Engine, serve


class FastEmbed(Engine):
    packages = ("fastembed", "onnxruntime", "onnx", "torch")
    model: JinaColbert

    def load(self, model: str | None, threads: int) -> None:
        if model is None:
            return
        source = Path(model)
        folder = as_onnx(source)
        prefixes = json.loads((source / "config_sentence_transformers.json").read_text(encoding="utf-8"))
        tokenizer = AutoTokenizer.from_pretrained(source)

        class OfThisVocabulary(JinaColbert):
            QUERY_MARKER_TOKEN_ID = tokenizer.convert_tokens_to_ids(prefixes["query_prefix"])
            DOCUMENT_MARKER_TOKEN_ID = tokenizer.convert_tokens_to_ids(prefixes["document_prefix"])
            MASK_TOKEN = tokenizer.mask_token

        self.model = OfThisVocabulary("jinaai/jina-colbert-v2", threads=threads, specific_model_path=str(folder))

    def encode(self, texts: list[str], role: str, batch: int | None) -> Any:
        if role == "query":
            return list(self.model.query_embed(texts))
        return list(self.model.embed(texts, **({} if batch is None else {"batch_size": batch})))


class _Network(torch.nn.Module):
    """Backbone and projection, to be traced."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.backbone = AutoModel.from_pretrained(folder, attn_implementation="eager")
        self.head = load_file(folder / "1_Dense" / "model.safetensors")["linear.weight"]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return torch.nn.functional.normalize(states @ self.head.T, dim=-1)


def as_onnx(source: Path) -> Path:
    """The checkpoint as fastembed reads it, made once, in a folder beside it; in float32."""
    folder = source.with_name(f"{source.name}-onnx")
    if folder.exists():
        return folder
    staging = folder.with_name(f".{folder.name}-{os.getpid()}")
    (staging / "onnx").mkdir(parents=True)
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(source / name, staging / name)
    settings = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
    lengths = json.loads((source / "config_sentence_transformers.json").read_text(encoding="utf-8"))
    settings["model_max_length"] = settings["max_length"] = lengths["document_length"]  # the lesser of the two counts
    (staging / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    export_onnx(_Network(source), staging / "onnx" / "model.onnx")
    (staging / "onnx" / "model.onnx_data").touch()  # listed by fastembed; all weights are in the other file
    staging.rename(folder)
    return folder


if __name__ == "__main__":
    serve(FastEmbed())
