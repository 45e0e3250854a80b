"""Whether an encoder makes the vectors that a collection holds, by comparing some where descriptions do not tell."""

from __future__ import annotations

import itertools

import numpy as np

from jcv2_plugin.checks import check_vectors
from jcv2_plugin.documents import StoredDocument
from jcv2_plugin.encoder.base import Encoder
from jcv2_plugin.encoder.remote import is_remote
from jcv2_plugin.engines.answers import check_documents
from jcv2_plugin.engines.base import Engine, Matrix
from jcv2_plugin.engines.schema import CollectionSchema
from jcv2_plugin.errors import CollectionMismatchError

LEAST_COSINE = 0.999
"""Mean cosine of a document's stored and new vectors. Another precision of the same model stays above it."""
_COMPARED = 3


def check_encoder(engine: Engine, schema: CollectionSchema, encoder: Encoder) -> None:
    """Raise CollectionMismatchError if an encoder cannot be used with a collection.

    If the fingerprints of the weights are not both known, the first documents are encoded again and compared. An empty
    collection takes an encoder of the same model's name.
    """
    if schema.check_encoder(encoder, engine.title):
        return
    compared = [
        record
        for record in itertools.islice(engine.scroll(None, with_payload=True, with_vectors=True), _COMPARED)
        if record.vectors is not None
    ]
    check_documents(compared, engine.title)
    if not compared:
        if _model_of(schema.model) != _model_of(encoder.reference):
            raise _mismatch(engine, schema, encoder, "and it is empty, so there are no vectors to compare")
        return
    texts = [StoredDocument.from_payload(record.payload).text for record in compared]
    fresh = encoder.document_vectors(texts, schema.dim, schema.long_documents, schema.pool_factor)
    for record, vectors in zip(compared, fresh, strict=True):
        name = f"document {StoredDocument.from_payload(record.payload).id!r}"
        check_vectors(vectors, schema.dim, name)
        assert record.vectors is not None
        if record.vectors.shape != vectors.shape:
            reason = f"{name} has {len(record.vectors)} vectors there and {len(vectors)} from this encoder"
            raise _mismatch(engine, schema, encoder, f"{reason}: its skip list, window or tokenizer differs too")
        cosine = float(cosines(record.vectors, vectors).mean())
        if not cosine > LEAST_COSINE:
            raise _mismatch(
                engine, schema, encoder, f"{name} has other vectors there: their mean cosine is {cosine:.4f}"
            )


def cosines(stored: Matrix, fresh: Matrix) -> Matrix:
    """Return the cosines of the rows of two arrays of the same shape."""
    norms = np.linalg.norm(stored, axis=1) * np.linalg.norm(fresh, axis=1)
    return np.asarray((stored * fresh).sum(axis=1) / np.maximum(norms, 1e-12))


def _mismatch(engine: Engine, schema: CollectionSchema, encoder: Encoder, reason: str) -> CollectionMismatchError:
    ours, theirs = _model_of(schema.model), _model_of(encoder.reference)
    there, here = _place_of(schema.model), _place_of(encoder.reference)
    what = f"the model {ours!r} {there}"
    if ours != theirs:
        differs = f"The model differs: this encoder is {theirs!r} {here}"
    elif there != here:
        differs = f"The server differs: this encoder is {theirs!r} {here}, which has another version under that name"
    else:
        differs = "Its server has another version under that name now"
    return CollectionMismatchError(
        f"{engine.title} was made with {what}, {reason}. {differs}. Open it with the first one, or create a new "
        "collection with this one."
    )


def _model_of(reference: str) -> str:
    """Return the name of a model without its server, owner or folder."""
    name = reference.partition("#")[2] if reference.startswith(("http:", "https:")) else reference
    return name.rstrip("/").replace(":", "/").rpartition("/")[2]


def _place_of(reference: str) -> str:
    return f"at {reference.partition('#')[0]}" if is_remote(reference) else "of this machine"
