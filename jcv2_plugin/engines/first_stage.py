"""First stages: find the candidates that MaxSim reranks.

A first stage stores an additional vector per document, computed from the same token vectors or from the text, and uses
it to find candidates in a fraction of the time. ``benchmarks/first_stages.py`` measures the stages; the results are in
docs/two-stage.md. :class:`FirstStage` is the protocol for stages of your own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from jcv2_plugin.errors import InvalidOptionError, InvalidVectorError

if TYPE_CHECKING:
    from jcv2_plugin.encoder.base import Encoder
    from jcv2_plugin.encoder.windows import TokenizedTexts

FirstStageName = Literal["none", "pooled", "bm25", "hybrid"]
FIRST_STAGES: tuple[FirstStageName, ...] = get_args(FirstStageName)

BUILT_IN = ("pooled", "bm25")
"""Names of the vectors that the built-in first stages search."""
_RESERVED = (*FIRST_STAGES, "muvera", "colbert")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_JOINT = "+"

Distance = Literal["cosine", "dot", "euclid"]
DISTANCES: tuple[Distance, ...] = get_args(Distance)
_MOST_DIMENSIONS = 65_536
"""Qdrant's limit for dense vectors."""
_SPARSE_DIMENSIONS = 2**32

BM25_K1 = 1.2
BM25_B = 0.75
BM25_LENGTH = 150.0
"""Okapi BM25 constants. The last is a fixed stand-in for the average document length, in tokens."""


@dataclass(frozen=True)
class SparseVector:
    """A sparse vector: the non-zero values and their dimensions."""

    indices: Sequence[int]
    values: Sequence[float]


StageVector: TypeAlias = NDArray[np.float32] | SparseVector
"""A dense vector of shape ``(size,)``, or a sparse vector."""


@dataclass(frozen=True)
class DenseParams:
    """Parameters of dense vectors.

    Attributes:
        size: Number of dimensions, up to 65,536.
        distance: How they are compared: ``"cosine"`` (vectors are normalised before they are stored), ``"dot"`` or
            ``"euclid"``.
    """

    size: int
    distance: Distance = "cosine"

    def __post_init__(self) -> None:
        if isinstance(self.size, np.integer):  # which JSON does not have
            object.__setattr__(self, "size", int(self.size))

    def __str__(self) -> str:
        return f"dense, size {self.size}, {self.distance}"

    def check(self, name: str) -> None:
        """Raise :class:`~jcv2_plugin.errors.InvalidOptionError` if a value is out of range."""
        if type(self.size) is not int or not 1 <= self.size <= _MOST_DIMENSIONS:
            raise InvalidOptionError(
                f"First stage {name!r}: size must be an integer from 1 to {_MOST_DIMENSIONS:,}, got {self.size!r}."
            )
        if self.distance not in DISTANCES:
            raise InvalidOptionError(
                f"First stage {name!r}: distance must be one of {DISTANCES}, got {self.distance!r}."
            )


@dataclass(frozen=True)
class SparseParams:
    """Parameters of sparse vectors, which are compared by their dot product.

    Attributes:
        idf: Whether Qdrant multiplies a query's values by the inverse document frequency of their dimensions, for
            models that do not weight words by how rare they are.
    """

    idf: bool = False

    def __str__(self) -> str:
        return f"sparse, {'with' if self.idf else 'without'} IDF"

    def check(self, name: str) -> None:
        """Raise :class:`~jcv2_plugin.errors.InvalidOptionError` if a value is not of its type."""
        if not isinstance(self.idf, bool):
            raise InvalidOptionError(f"First stage {name!r}: idf must be True or False, got {self.idf!r}.")


StageParams: TypeAlias = DenseParams | SparseParams


@runtime_checkable
class FirstStage(Protocol):
    """A first stage of your own: an object that makes one vector per document, and one per query, from the text.

    A collection stores its name and parameters, not the object. Pass the object to ``create``, and again to ``open``.
    Several threads may call it at once. With the workers of ``ingest``, it is pickled and sent to other processes.
    """

    @property
    def name(self) -> str:
        """Name of the stored vector: up to 64 letters, digits, ``-`` and ``_``.

        It stands for the vectors: give another model another name.
        """

    @property
    def params(self) -> StageParams:
        """Parameters of the vectors, :class:`DenseParams` or :class:`SparseParams`."""

    def encode_documents(self, texts: Sequence[str]) -> Any:
        """Return a vector for each document, in order.

        Dense vectors are an array of shape ``(len(texts), size)`` or a sequence of arrays. Sparse vectors are a
        sequence of :class:`SparseVector`. The texts are whole documents, which may exceed the model's window.
        """

    def encode_queries(self, texts: Sequence[str]) -> Any:
        """Return a vector for each query, in order, of the same kind as for documents."""


FirstStageLike: TypeAlias = FirstStageName | FirstStage | Sequence[FirstStageName | FirstStage]
"""Name of a first stage, a stage of your own, or several, whose candidates are merged."""


class PooledStage:
    """Normalised mean of the token vectors."""

    name = "pooled"

    def document(self, text: str, vectors: NDArray[np.float32], ids: Sequence[int] | None = None) -> StageVector:
        """Return the vector to store for a document, from its token vectors of shape ``(tokens, dim)``."""
        return self.query(text, vectors)

    def query(self, text: str, vectors: NDArray[np.float32]) -> StageVector:
        """Return the vector to search with, from a query's token vectors of shape ``(tokens, dim)``."""
        mean = vectors.mean(axis=0)
        norm = float(np.linalg.norm(mean))
        return np.asarray(mean / norm if norm > 0 else mean, dtype=np.float32)


@dataclass(frozen=True)
class Bm25Stage:
    """BM25 over the model's subword tokens, as a sparse vector. Qdrant applies the IDF.

    Subword tokens need no language setting, stemmer or stop word list, so a collection can mix languages, including
    those written without spaces. The whole document counts, even where it exceeds the model's window.
    """

    tokenized: Callable[[Sequence[str]], TokenizedTexts]
    name: str = "bm25"

    def document(self, text: str, vectors: NDArray[np.float32], ids: Sequence[int] | None = None) -> StageVector:
        """Return the vector to store for a document, from its token ids if they are known."""
        pieces, counts = np.unique(self._ids(text) if ids is None else np.asarray(ids, np.int64), return_counts=True)
        norm = BM25_K1 * (1 - BM25_B + BM25_B * counts.sum() / BM25_LENGTH)
        return SparseVector(pieces.tolist(), (counts * (BM25_K1 + 1) / (counts + norm)).tolist())

    def query(self, text: str, vectors: NDArray[np.float32]) -> StageVector:
        """Return the vector to search with, from a query's text."""
        pieces = np.unique(self._ids(text)).tolist()
        return SparseVector(pieces, [1.0] * len(pieces))

    def _ids(self, text: str) -> NDArray[np.int64]:
        return np.asarray(self.tokenized([text]).ids[0], dtype=np.int64)


@dataclass(frozen=True)
class ChosenStages:
    """A choice of first stages: its name as stored, such as ``"bm25+my-stage"``, and the user's own stages in it."""

    name: str
    own: Mapping[str, FirstStage] = field(default_factory=dict)

    @classmethod
    def of(cls, first_stage: Any) -> ChosenStages:
        """Check the value of a ``first_stage=`` option. Raises InvalidOptionError."""
        if isinstance(first_stage, str) and first_stage in FIRST_STAGES:
            return cls(first_stage)
        given = [first_stage] if not isinstance(first_stage, (list, tuple)) else list(first_stage)
        names: list[str] = []
        own: dict[str, FirstStage] = {}
        for one in given:
            if isinstance(one, str):
                if one not in FIRST_STAGES or one == "none":
                    raise InvalidOptionError(_unknown(one))
                names += stage_names(one)
            else:
                name = check_own_stage(one)
                names.append(name)
                own[name] = one
        if not names:
            raise InvalidOptionError("first_stage is an empty list. Write first_stage='none' for exact searches.")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InvalidOptionError(f"first_stage has {twice} more than once. Give each stage another name.")
        return cls("hybrid" if set(names) == set(BUILT_IN) else _JOINT.join(names), own)

    @property
    def options(self) -> dict[str, StageParams]:
        """Parameters of the user's own stages, by name."""
        return {name: stage.params for name, stage in self.own.items()}


def _unknown(first_stage: str) -> str:
    return (
        f"first_stage must be one of {FIRST_STAGES}, an object with the methods of jcv2_plugin.FirstStage, or a list "
        f"of these without 'none'; got {first_stage!r}."
    )


def check_own_stage(stage: Any) -> str:
    """Return the name of a stage of the user's own. InvalidOptionError unless it is a :class:`FirstStage`."""
    parts = ("name", "params", "encode_documents", "encode_queries")
    if isinstance(stage, type) or (missing := [part for part in parts if not hasattr(stage, part)]):
        what = "a class, not an object of it" if isinstance(stage, type) else f"without {', '.join(missing)}"
        raise InvalidOptionError(
            f"first_stage must be one of {FIRST_STAGES} or an object with {', '.join(parts)} (see "
            f"jcv2_plugin.FirstStage); got {stage!r:.80}, {what}."
        )
    name, params = stage.name, stage.params
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
        raise InvalidOptionError(
            f"The name of a first stage has up to 64 letters, digits, - and _, begins with a letter or digit, and is "
            f"none of {_RESERVED}; got {name!r}."
        )
    if not isinstance(params, (DenseParams, SparseParams)):
        raise InvalidOptionError(
            f"First stage {name!r}: params must be jcv2_plugin.DenseParams or SparseParams, got {params!r:.80}."
        )
    params.check(name)
    return name


def stage_names(first_stage: str) -> tuple[str, ...]:
    """Return the names of the vectors that a first stage searches."""
    if first_stage == "none":
        return ()
    return BUILT_IN if first_stage == "hybrid" else tuple(first_stage.split(_JOINT))


def stage_params(
    first_stage: str, dim: int, options: Mapping[str, StageParams] | None = None
) -> dict[str, StageParams]:
    """Return the parameters of each stored vector by name. ``options`` are those of the user's own stages."""
    known: dict[str, StageParams] = {"pooled": DenseParams(dim, "dot"), "bm25": SparseParams(idf=True)}
    known.update(options or {})
    return {name: known[name] for name in stage_names(first_stage)}


def params_to_dict(options: Mapping[str, StageParams]) -> dict[str, dict[str, Any]]:
    """Return parameters as they are stored."""
    return {name: asdict(params) for name, params in options.items()}


def params_from_dict(raw: Mapping[Any, Any]) -> dict[str, StageParams]:
    """Read stored parameters. Raises InvalidOptionError if they are not readable."""
    options: dict[str, StageParams] = {}
    for name, given in raw.items():
        kinds = {frozenset({"size", "distance"}): DenseParams, frozenset({"idf"}): SparseParams}
        kind = kinds.get(frozenset(given)) if isinstance(given, Mapping) else None
        if kind is None or not isinstance(name, str) or not _NAME.fullmatch(name) or name in _RESERVED:
            raise InvalidOptionError(f"The parameters of the first stage {name!r:.80} are unreadable: {given!r:.80}.")
        options[name] = kind(**given)
        options[name].check(name)
    return options


def check_first_stage(first_stage: str, options: Mapping[str, StageParams]) -> None:
    """Raise InvalidOptionError unless a first stage has the user's own stages that are described, and no others."""
    names = stage_names(first_stage)
    if sorted(names) != sorted({*names} & {*BUILT_IN, *options}) or not set(options) <= set(names):
        raise InvalidOptionError(_unknown(first_stage))


def encode_own(stage: FirstStage, texts: Sequence[str], kind: Literal["document", "query"]) -> list[StageVector]:
    """Encode texts with a stage of the user's own. Raises InvalidVectorError for what it must not return."""
    if not texts:
        return []
    given = stage.encode_documents(list(texts)) if kind == "document" else stage.encode_queries(list(texts))
    method = f"{'encode_documents' if kind == 'document' else 'encode_queries'} of the first stage {stage.name!r}"
    try:
        number = len(given)
    except TypeError:
        number = -1
    if number != len(texts):
        what = type(given).__name__ if number < 0 else f"{number} vectors"
        raise InvalidVectorError(f"{method} returned {what} for {len(texts)} texts. It must return one for each text.")
    return [
        check_stage_vector(vector, stage.params, f"{method}: the vector of {text[:40]!r}")
        for vector, text in zip(given, texts, strict=True)
    ]


def check_stage_vector(vector: Any, params: StageParams, what: str) -> StageVector:
    """Return a vector of a first stage as it is stored. Raises InvalidVectorError, about ``what``, if it cannot be."""
    is_sparse = hasattr(vector, "indices") and hasattr(vector, "values")
    if isinstance(params, SparseParams):
        if not is_sparse or callable(vector.indices) or callable(vector.values):
            raise InvalidVectorError(
                f"{what} is of type {type(vector).__name__}. Return a jcv2_plugin.SparseVector for each text."
            )
        return _checked_sparse(vector, what)
    try:
        dense = np.array(vector, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidVectorError(f"{what} is no array of numbers ({error}).") from error
    if dense.shape != (params.size,):
        raise InvalidVectorError(f"{what} has the shape {dense.shape}. The stage's params say ({params.size},).")
    if not np.isfinite(dense).all():
        raise InvalidVectorError(f"{what} is not finite (NaN or infinite values).")
    if params.distance == "cosine":
        norm = float(np.linalg.norm(dense.astype(np.float64)))
        if norm == 0:
            raise InvalidVectorError(f"{what} is all zeros, which has no direction. Use the distance 'dot'.")
        dense = (dense / norm).astype(np.float32)
    return dense


def _checked_sparse(vector: Any, what: str) -> SparseVector:
    indices, values = np.asarray(vector.indices), np.asarray(vector.values, dtype=np.float32)
    if indices.ndim != 1 or indices.shape != values.shape:
        raise InvalidVectorError(f"{what} has indices of shape {indices.shape} and values of shape {values.shape}.")
    if not indices.size:
        return SparseVector([], [])
    if indices.dtype.kind not in "iu" or indices.min() < 0 or indices.max() >= _SPARSE_DIMENSIONS:
        raise InvalidVectorError(f"{what} has indices that are not integers from 0 to 2**32 - 1.")
    if len(np.unique(indices)) < len(indices):
        raise InvalidVectorError(f"{what} has an index more than once.")
    if not np.isfinite(values).all():
        raise InvalidVectorError(f"{what} is not finite (NaN or infinite values).")
    order = np.argsort(indices)
    return SparseVector(indices[order].tolist(), values[order].tolist())


Stage: TypeAlias = PooledStage | Bm25Stage


def build_stages(first_stage: str, encoder: Encoder) -> list[Stage]:
    """Build a collection's built-in stages, with the encoder's tokens where they need some."""
    return [
        PooledStage() if name == "pooled" else Bm25Stage(encoder.tokenized)
        for name in stage_names(first_stage)
        if name in BUILT_IN
    ]


def choose_first_stage(first_stage: FirstStageLike | None, encoder: Encoder) -> ChosenStages:
    """Return the first stage of a new collection. None is hybrid, or pooled for an encoder that returns no tokens."""
    if first_stage is None:
        return ChosenStages("hybrid" if encoder.gives_tokens else "pooled")
    chosen = ChosenStages.of(first_stage)
    check_tokens(chosen.name, encoder)
    return chosen


def check_tokens(first_stage: str, encoder: Encoder) -> None:
    """Raise InvalidOptionError if a first stage counts the tokens of texts, which the encoder does not return."""
    if "bm25" in stage_names(first_stage) and not encoder.gives_tokens:
        raise InvalidOptionError(
            f"first_stage={first_stage!r} counts the tokens of texts, and {encoder.reference} does not return them. "
            "Use first_stage='pooled' or 'none', or a server that returns tokens, such as jcv2 serve."
        )
