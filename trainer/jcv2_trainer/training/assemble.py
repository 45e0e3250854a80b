"""Build a late-interaction encoder from a backbone: markers, query expansion, skip list and projection heads.

In the paper's recipe (arXiv 2408.16672), this is the step between the masked-language model and training on pairs. The
encoder is prepared like jina-colbert-v2, see :func:`jcv2_plugin.encoder.loading.load_official`. Its heads are principal
components (:mod:`jcv2_trainer.heads.principal`), which are a better starting point for training than random heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer
from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
from transformers import AutoModel

from jcv2_plugin import JinaColbertEncoder
from jcv2_plugin.encoder.heads import MatryoshkaHeads
from jcv2_plugin.encoder.official import DOCUMENT_MARKER, QUERY_MARKER
from jcv2_plugin.encoder.shipped import shipped_model
from jcv2_plugin.encoder.skiplist import skiplist_words
from jcv2_plugin.errors import InvalidOptionError, ModelLayoutError
from jcv2_plugin.files import new_folder, read_settings
from jcv2_trainer.data.reading import sample_texts
from jcv2_trainer.errors import TrainingError
from jcv2_trainer.heads.principal import captured, load_backbone, principal_heads, refuse_large, second_moment
from jcv2_trainer.recipes.settings import PAPER_DIMS, Assembly
from jcv2_trainer.training.card import TAGS, listed
from jcv2_trainer.training.rotary import load_weights, refuse_lost
from jcv2_trainer.training.runs import refuse_taken, versions, write_report

__all__ = ["PAPER_DIMS", "Assembly", "AssemblyReport", "add_markers", "assemble"]


@dataclass
class AssemblyReport:
    """What was built, as in ``training.json`` in the encoder's folder.

    ``captured`` is the share of the hidden states' squared length that each head keeps, by dimension. ``queries`` and
    ``positives`` are their numbers in the sample of ``data``.
    """

    model: str
    data: str
    queries: int
    positives: int
    settings: dict[str, Any]
    captured: dict[int, float]
    added_tokens: list[str]
    parameters: int
    stage: str = "assemble"
    versions: dict[str, str] = field(default_factory=versions)


def assemble(
    backbone: str,
    data: Path,
    out: Path,
    settings: Assembly | None = None,
    *,
    force: bool = False,
    progress: Callable[[int], object] | None = None,
) -> AssemblyReport:
    """Build an encoder from a backbone, with heads fitted to texts, and write it to a folder.

    No remote code is run and no pickle is read. Weights are written in float32, as they are trained.

    Args:
        backbone: Folder of a transformers encoder, such as ``convert`` and ``mlm`` write, or name of a shipped model.
        data: File of pairs or triplets to sample texts from (:func:`~jcv2_trainer.data.reading.sample_texts`).
        out: Output folder, which is either complete or absent.
        settings: Settings of the encoder. Defaults to those of the paper.
        force: Replace an encoder written by this package in ``out``.
        progress: Called after each batch of the sample with its number of texts.

    Raises:
        ModelNotFoundError: ``backbone`` is neither a folder nor a shipped model.
        ModelLayoutError: The backbone cannot be read, lacks weights, or its tokenizer does not support the settings.
        InvalidOptionError: A dimension or length exceeds the backbone's.
        DataError: The data cannot be read, or has no row in ``lang``.
        TrainingError: ``out`` is taken, or ``backbone`` already has heads.
    """
    settings = settings or Assembly()
    out = out.expanduser().absolute()
    refuse_taken(out, force)
    if Path(backbone).expanduser().resolve() == out.resolve():
        raise TrainingError(f"{out} is the backbone itself. Choose another --out.")
    transformer = _load(backbone)
    refuse_large(backbone, transformer, settings.dims)
    added = add_markers(transformer) if settings.markers else []
    encoder = _encoder(transformer, settings)
    queries, positives = sample_texts(data, settings.texts, settings.seed, settings.lang)
    # As the encoder reads them, but without the mask tokens, which would outnumber the words of short queries.
    texts = [(encoder.prompts.get("document") or "") + text for text in positives]
    texts += [(encoder.prompts.get("query") or "") + text for text in queries]
    moment = second_moment(transformer, texts, progress=progress)
    heads = principal_heads(moment, settings.dims)
    encoder.set_heads(heads)
    report = AssemblyReport(
        model=backbone,
        data=data.name,
        queries=len(queries),
        positives=len(positives),
        settings=settings.model_dump(),
        captured={dim: captured(moment, heads.weight(dim)) for dim in heads.dims},
        added_tokens=added,
        parameters=sum(parameter.numel() for parameter in encoder.parameters()),
    )
    with new_folder(out, partial(refuse_taken, force=force)) as folder:
        encoder.save_pretrained(str(folder), create_model_card=False)
        (folder / "README.md").write_text(_card(report), encoding="utf-8")
        write_report(folder, report)
    return report


def add_markers(transformer: Transformer) -> list[str]:
    """Add the two markers to the tokenizer and the embeddings if they are missing, in place, and return the new ones.

    A new marker is initialised as the separator (``[SEP]``, ``</s>``), which disturbs the hidden states of the other
    tokens least. Before 60 English paragraphs, with all-MiniLM-L6-v2, their mean cosine to the states without a marker
    was 0.996. It was 0.970 with the mean of all embeddings or ``[CLS]``, and 0.87 with ``[MASK]``. Both markers may
    start alike, as each has its own gradients.

    Raises:
        ModelLayoutError: The tokenizer cannot keep a marker as one token.
    """
    tokenizer: Any = transformer.tokenizer
    known = tokenizer.get_vocab()
    new = [marker for marker in (QUERY_MARKER, DOCUMENT_MARKER) if marker not in known]
    if split := [marker for marker in (QUERY_MARKER, DOCUMENT_MARKER) if tokenizer.tokenize(marker) != [marker]]:
        # Append them. By default, the tokenizer's existing additional tokens would no longer be special.
        tokenizer.add_special_tokens({"additional_special_tokens": split}, replace_extra_special_tokens=False)
    # New ids continue the token count, so they may be taken in a vocabulary with gaps.
    if taken := set(known.values()).intersection(tokenizer.convert_tokens_to_ids(new)):
        raise ModelLayoutError(
            f"The vocabulary has {len(known):,} tokens with ids up to {max(known.values()):,}, so a marker would share "
            f"the id {min(taken)} with another token. Number the tokens without gaps, or use --no-markers."
        )
    model: Any = transformer.model
    start = next((one for one in (tokenizer.sep_token_id, tokenizer.cls_token_id) if one is not None), None)
    old = model.get_input_embeddings().weight.detach()
    row = old.mean(dim=0) if start is None else old[start].clone()
    rows = 1 + max(tokenizer.get_vocab().values())
    if rows > len(old):  # some models have spare, untrained rows
        model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for marker in new:
            model.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(marker)] = row
    for marker in (QUERY_MARKER, DOCUMENT_MARKER):
        _check_marker(tokenizer, marker)
    return new


def _check_marker(tokenizer: Any, marker: str) -> None:
    """Raise unless a marked text becomes the marker and the text's tokens, within the usual special tokens."""
    ids = tokenizer(f"{marker} a")["input_ids"]
    own = tokenizer.convert_tokens_to_ids(marker)
    before = ids[: ids.index(own)] if own in ids else None
    if before is None or not set(before) <= set(tokenizer.all_special_ids) or own in ids[len(before) + 1 :]:
        raise ModelLayoutError(
            f"The tokenizer splits {marker + ' a'!r} into {tokenizer.convert_ids_to_tokens(ids)}, but the marker must "
            "be one token before those of the text. Use --no-markers."
        )


def _load(backbone: str) -> Transformer:
    """Load the backbone in float32, and check that no weights are missing."""
    folder = Path(backbone).expanduser()
    if shipped_model(backbone) is None and folder.is_dir():
        _refuse_heads(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a missing pooler is random, and should be the same each time
        transformer = load_backbone(backbone)
    if shipped_model(backbone) is None:
        # transformers would initialise missing weights at random. A missing pooler is fine.
        refuse_lost(folder, (name for name in load_weights(AutoModel, folder)[1] if "pooler" not in name))
    model: Any = transformer.model
    model.float()
    if getattr(transformer.tokenizer, "mask_token_id", None) is None:
        raise ModelLayoutError(
            f"The tokenizer of {backbone!r} has no mask token, with which queries are padded. Give the folder of a "
            "masked-language model."
        )
    return transformer


def _refuse_heads(folder: Path) -> None:
    modules = folder / "modules.json"
    try:
        has_heads = modules.is_file() and MatryoshkaHeads.__name__ in read_settings(modules)
    except (OSError, ValueError) as error:
        raise ModelLayoutError(f"{modules} cannot be read ({error}). Download the model again.") from error
    if has_heads:
        raise TrainingError(
            f"{folder} is already an encoder with heads. Train it with: jcv2-finetune pairs --model {folder}. Its "
            "option --dims adds heads."
        )


def _encoder(transformer: Transformer, settings: Assembly) -> JinaColbertEncoder:
    """Build the encoder with random heads, as placeholders until the hidden states are known."""
    prompts = {"query": f"{QUERY_MARKER} ", "document": f"{DOCUMENT_MARKER} "} if settings.markers else {}
    transformer.query_expansion = {"strategy": "fixed", "attend": True, "length": settings.query_length}
    heads = MatryoshkaHeads(transformer.get_embedding_dimension(), settings.dims)
    mask = MultiVectorMask(skiplist_words=skiplist_words(transformer.tokenizer, settings.skiplist))
    encoder = JinaColbertEncoder(modules=[transformer, heads, mask], prompts=prompts, device="cpu")
    shortest = len(encoder.tokenizer(prompts.get("query", ""))["input_ids"]) + 1
    if not shortest <= settings.query_length <= encoder.max_document_length:
        raise InvalidOptionError(
            f"query_length must be between {shortest} and {encoder.max_document_length} for this backbone, got "
            f"{settings.query_length}."
        )
    encoder.document_length = settings.document_length
    return encoder


def _card(report: AssemblyReport) -> str:
    """Return the model card as Markdown, which says that the heads are untrained."""
    name = report.model if shipped_model(report.model) else Path(report.model).name
    settings = report.settings
    rows = "".join(f"| {dim} | {share:.1%} |\n" for dim, share in report.captured.items())
    return f"""{TAGS}---

# Untrained late-interaction encoder over {name}

Made by `jcv2-finetune assemble`, to be trained by `jcv2-finetune pairs`. **Its heads are not trained**: they are the \
principal components of the backbone's token states.

Fitted to {report.queries:,} queries and {report.positives:,} positives of {report.data}, \
{"with" if settings["markers"] else "without"} markers. Queries have {settings["query_length"]} tokens, documents up \
to {settings["document_length"]}; skip list: {settings["skiplist"] or "none"}.

| dim | share of the token states' squared length |
|---:|---:|
{rows}
Versions: {listed(report.versions)}.
"""
