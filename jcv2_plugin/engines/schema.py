"""Collection schema: the model, dimension and preprocessing that a collection's vectors were made with.

The schema is stored with the collection (as collection metadata on a server, in ``jcv2.json`` next to an Edge shard)
and determines which encoders can be used with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from jcv2_plugin.checks import check_pool_factor
from jcv2_plugin.encoder.base import UNKNOWN_WEIGHTS, Encoder
from jcv2_plugin.encoder.skiplist import SKIPLISTS
from jcv2_plugin.encoder.windows import LONG_DOCUMENTS, LongDocuments
from jcv2_plugin.engines.first_stage import (
    BUILT_IN,
    StageParams,
    check_first_stage,
    params_from_dict,
    params_to_dict,
    stage_names,
    stage_params,
)
from jcv2_plugin.engines.storage import Storage, storage_profile
from jcv2_plugin.errors import (
    CollectionCorruptError,
    CollectionMismatchError,
    CollectionUnfinishedError,
    InvalidOptionError,
)

FORMAT = 2
"""Format of the stored schema. Format 1, without first stage and token pooling, can still be read."""
VECTOR_NAME = "colbert"
METADATA_FIELD = "jcv2"
REPLACES_FIELD = "jcv2_replaces"
"""Metadata of a collection on a server: the name of the one that it replaces and that is deleted then."""
MAX_FLOATS = 1024 * 1024
"""A multivector must have fewer floats (rows x dim). A hard limit of Qdrant that local engines do not enforce."""
_NEWER_TYPES: dict[str, Any] = {"first_stage": str, "pool_factor": (int, float), "stage_options": dict}
_REMEDIES = {
    "document_length": "Load the encoder with document_length={!r}.",
    "query_length": "Set the backbone's query_expansion to a length of {!r}.",
    "skiplist": "Load the encoder with skiplist={!r}.",
}

_REPEAT = "Repeat that, or drop the collection."


@dataclass(frozen=True)
class CollectionSchema:
    """Collection schema: how a collection's vectors were made and are stored.

    Attributes:
        model: Name or folder to load the model from, or the address of its server.
        revision: Revision of the model. None for a local folder.
        fingerprint: Fingerprint of the weights that produce vectors of this ``dim``. If the model's server does not
            tell it, the server and the model.
        dim: Matryoshka dimension.
        document_length: Window of the model, in tokens.
        query_length: Number of vectors per query if queries are padded, else None.
        skiplist: Document tokens that are not stored.
        long_documents: How documents longer than the window are handled.
        storage: How vectors are stored, see :mod:`jcv2_plugin.engines.storage`.
        format: Format of the stored schema.
        first_stage: How candidates for MaxSim are found, see :mod:`jcv2_plugin.engines.first_stage`. Several stages are
            joined by ``+``.
        pool_factor: Token pooling factor: about one vector is stored per ``pool_factor`` document tokens.
        unfinished: What is being done to the collection before it can be used: ``"creation"``,
            ``"restoration"``, ``"repair"`` or ``"deletion"``.
        stage_options: Parameters of first stages of the user's own, by name.
    """

    model: str
    revision: str | None
    fingerprint: str
    dim: int
    document_length: int
    query_length: int | None
    skiplist: str | None
    long_documents: LongDocuments
    storage: Storage
    format: int = FORMAT
    first_stage: str = "none"
    pool_factor: float = 1.0
    unfinished: str = ""
    stage_options: Mapping[str, StageParams] = field(default_factory=dict, hash=False)

    @property
    def stages(self) -> dict[str, StageParams]:
        """Parameters of each vector that the first stage stores, by name."""
        return stage_params(self.first_stage, self.dim, self.stage_options)

    @classmethod
    def describe(
        cls,
        encoder: Encoder,
        dim: int,
        long_documents: LongDocuments,
        storage: Storage,
        *,
        first_stage: str = "none",
        stage_options: Mapping[str, StageParams] | None = None,
        pool_factor: float = 1.0,
    ) -> CollectionSchema:
        """Build the schema of a new collection.

        Raises:
            InvalidOptionError: An option is invalid.
        """
        schema = cls(
            model=encoder.reference,
            revision=encoder.revision,
            fingerprint=encoder.head_fingerprint(dim),
            dim=dim,
            document_length=encoder.document_length,
            query_length=encoder.query_length,
            skiplist=encoder.skiplist,
            long_documents=long_documents,
            storage=storage,
            first_stage=first_stage,
            pool_factor=pool_factor,
            stage_options=dict(stage_options or {}),
        )
        schema.check_values()
        return replace(schema, pool_factor=float(pool_factor))

    def to_dict(self) -> dict[str, Any]:
        """Return the schema as stored."""
        return {**asdict(self), "stage_options": params_to_dict(self.stage_options)}

    @classmethod
    def from_dict(cls, raw: Any, title: str) -> CollectionSchema:
        """Read a stored schema.

        Raises:
            CollectionCorruptError: The schema is missing, damaged, of a newer format, or uses a first stage that this
                version no longer has.
        """
        if not isinstance(raw, Mapping):
            raise CollectionCorruptError(
                f"{title} has no description of ours (found {raw!r:.60}): it was not made by jcv2-plugin, or the "
                "description was lost. Create a new collection and add the documents to it."
            )
        if isinstance(raw.get("format"), int) and raw["format"] > FORMAT:
            raise CollectionCorruptError(
                f"{title} has format {raw['format']}, this version reads up to {FORMAT}. Upgrade jcv2-plugin."
            )
        if raw.get("unfinished"):
            remedy = "Repeat it: jcv2 verify --repair." if raw["unfinished"] == "repair" else _REPEAT
            raise CollectionUnfinishedError(
                f"{title} is unfinished: its {raw['unfinished']!s:.40} was interrupted. {remedy}"
            )
        names = {one.name for one in fields(cls)} - {"unfinished", "stage_options"}
        newer = set(_NEWER_TYPES) if raw.get("format") == 1 else set()
        missing = sorted(names - newer - set(raw))
        wrong = [name for name in ("dim", "document_length") if type(raw.get(name)) is not int]
        wrong += [name for name in ("model", "fingerprint", "storage") if not isinstance(raw.get(name), str)]
        wrong += [name for name in ("revision", "skiplist") if not isinstance(raw.get(name), (str, type(None)))]
        wrong += [name for name in ("query_length",) if type(raw.get(name)) not in (int, type(None))]
        wrong += [name for name in ("format",) if type(raw.get(name, 1)) is not int]
        wrong += [name for name, kind in _NEWER_TYPES.items() if name in raw and not isinstance(raw[name], kind)]
        if missing or wrong:
            raise CollectionCorruptError(
                f"{title}: the collection's description is damaged (missing {missing}, unreadable {wrong}). "
                "Restore it from a backup, or create the collection anew."
            )
        stage, options = raw.get("first_stage", "none"), raw.get("stage_options") or {}
        if not set(stage_names(stage)) <= {*BUILT_IN, *options}:
            raise CollectionCorruptError(
                f"{title} uses the first stage {stage!r}, which this version does not have. Open it with jcv2-plugin "
                "0.1, and migrate it with collection.migrate(first_stage='hybrid') or jcv2 migrate --first-stage "
                "hybrid. Nothing is encoded again. Restore a snapshot with 0.1 too, migrate, and create a new snapshot."
            )
        given = {name: raw[name] for name in names if name in raw}
        try:
            schema = cls(**given, stage_options=params_from_dict(options))
            schema.check_values()
        except InvalidOptionError as error:
            raise CollectionCorruptError(
                f"{title}: the collection's description is damaged. {error} Restore it from a backup, or create the "
                "collection anew."
            ) from error
        return schema

    def check_values(self) -> None:
        """Check the values that a collection is created with.

        Raises:
            InvalidOptionError: A value is unknown or out of range.
        """
        if self.long_documents not in LONG_DOCUMENTS:
            raise InvalidOptionError(f"long_documents must be one of {LONG_DOCUMENTS}, got {self.long_documents!r}.")
        storage_profile(self.storage)
        check_pool_factor(self.pool_factor)
        if self.skiplist not in (*SKIPLISTS, "custom", None):
            raise InvalidOptionError(f"skiplist must be one of {SKIPLISTS}, 'custom' or None, got {self.skiplist!r}.")
        for name in ("dim", "document_length", "query_length"):
            if (value := getattr(self, name)) is not None and not 1 <= value <= MAX_FLOATS:
                raise InvalidOptionError(f"{name} must be positive and at most {MAX_FLOATS:,}, got {value!r}.")
        check_first_stage(self.first_stage, self.stage_options)

    @property
    def knows_weights(self) -> bool:
        """Whether the fingerprint is that of weights. A server need not tell them."""
        return not self.fingerprint.startswith(UNKNOWN_WEIGHTS)

    def check_encoder(self, encoder: Encoder, title: str) -> bool:
        """Check that an encoder's vectors are comparable with the stored ones, as far as descriptions tell.

        Returns:
            Whether the model is known to be the same. If not, vectors must be compared, see
            :func:`jcv2_plugin.collection.sameness.check_encoder`.

        Raises:
            CollectionMismatchError: The model, dimension or preprocessing differs. The message contains a remedy.
        """
        if self.dim not in encoder.dims:
            raise CollectionMismatchError(
                f"{title} holds vectors of dim={self.dim}; the model {encoder.name!r} has heads for "
                f"{list(encoder.dims)}. Load it with dims={self.dim}, or open the collection without naming a model."
            )
        found = CollectionSchema.describe(encoder, self.dim, self.long_documents, self.storage)
        if found.fingerprint != self.fingerprint:
            if not (self.knows_weights and found.knows_weights):
                return False
            raise CollectionMismatchError(
                f"{title} was made with the model {self.model!r} (revision {self.revision}, weights "
                f"{self.fingerprint}), not with {found.model!r} (revision {found.revision}, weights "
                f"{found.fingerprint}). Open it with that model, in float32 or bfloat16 (rounding to float16 changes "
                "the weights), or create a new collection with this one."
            )
        for name in ("document_length", "query_length", "skiplist"):
            ours, theirs = getattr(self, name), getattr(found, name)
            if ours != theirs:
                raise CollectionMismatchError(
                    f"{title} was made with {name}={ours!r}, the encoder has {theirs!r}. "
                    f"{_REMEDIES[name].format(ours)} Or open the collection without naming a model."
                )
        return True
