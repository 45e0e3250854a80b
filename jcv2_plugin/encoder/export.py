"""Export one projection head of a model in PyLate's layout, which both sentence-transformers 6 and PyLate load.

The folder can be used without this package. PyLate 1.6 pins transformers below the first version with Jina's backbone,
so it only loads exports of other backbones (BERT, ModernBERT, XLM-R, ...).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save

from jcv2_plugin.errors import ModelLayoutError
from jcv2_plugin.files import new_folder

if TYPE_CHECKING:
    from jcv2_plugin.encoder.heads import MatryoshkaHeads
    from jcv2_plugin.encoder.model import JinaColbertEncoder


def export_single_head(encoder: JinaColbertEncoder, path: Path, dim: int) -> None:
    """Write the backbone and the head for ``dim`` to a new folder in PyLate's layout. Raises ModelLayoutError if the
    layout cannot represent the model.
    """
    heads = encoder.heads
    if heads is None or (obstacle := _obstacle(encoder, heads)):
        raise ModelLayoutError(
            f"{encoder.name!r} cannot be exported to PyLate's layout: {obstacle if heads else 'it has no heads'}. Use "
            "save_pretrained(...), which keeps everything."
        )
    with new_folder(path) as staging:
        encoder.backbone.model.save_pretrained(staging)
        encoder.tokenizer.save_pretrained(staging)
        (staging / "1_Dense").mkdir()
        for name, content in _configs(encoder, dim).items():
            (staging / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        weight = heads.weight(dim).to("cpu").contiguous()
        (staging / "1_Dense" / "model.safetensors").write_bytes(save({"linear.weight": weight}))


def _obstacle(encoder: JinaColbertEncoder, heads: MatryoshkaHeads) -> str | None:
    mask = encoder.scoring_mask
    expansion = encoder.backbone.query_expansion
    if not heads.normalize:
        return "its vectors are not normalised"
    if len(encoder) != (2 if mask is None else 3):
        return "it has modules beyond backbone, heads and mask"
    if mask is not None and (mask.skiplist_tasks != ["document"] or mask.keep_only_token_ids):
        return "its scoring mask is more than a skip list for documents"
    if expansion is not None and expansion["strategy"] != "fixed":
        return f"its queries are expanded by the strategy {expansion['strategy']!r}, not to a fixed length"
    return None


def _configs(encoder: JinaColbertEncoder, dim: int) -> dict[str, Any]:
    backbone = encoder.backbone
    expansion = backbone.query_expansion
    length = expansion["length"] if expansion else backbone.query_length or encoder.max_document_length
    mask = encoder.scoring_mask
    prompts = {role: encoder.prompts.get(role) or "" for role in ("query", "document")}
    return {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
        ],
        "sentence_bert_config.json": {"max_seq_length": encoder.max_seq_length, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "model_type": "ColBERT",
            "__version__": {},
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "MaxSim",
            # PyLate inserts the marker's id; sentence-transformers prepends the prompt, which is marker and space.
            "query_prefix": prompts["query"].strip(),
            "document_prefix": prompts["document"].strip(),
            "query_length": length,
            "document_length": encoder.document_length,
            "attend_to_expansion_tokens": bool(expansion and expansion["attend"]),
            "do_query_expansion": expansion is not None,
            "skiplist_words": list(mask.skiplist_words) if mask is not None else [],
        },
        "1_Dense/config.json": {
            "in_features": encoder.heads.in_features if encoder.heads else 0,
            "out_features": dim,
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    }
