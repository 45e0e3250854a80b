"""The part of a collection that keeps it in order: migrating, verifying, snapshots."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jcv2_plugin.collection.migrate import MigrationReport, Target, migrate
from jcv2_plugin.collection.snapshot import SnapshotInfo, write_snapshot
from jcv2_plugin.collection.state import CollectionState
from jcv2_plugin.collection.verify import VerificationReport, verify
from jcv2_plugin.encoder.windows import LongDocuments
from jcv2_plugin.engines.first_stage import FirstStage
from jcv2_plugin.engines.storage import Storage

if TYPE_CHECKING:
    from jcv2_plugin.encoder.model import JinaColbertEncoder


class Maintenance(CollectionState):
    """See the module."""

    def migrate(
        self,
        *,
        dim: int | None = None,
        encoder: JinaColbertEncoder | str | os.PathLike[str] | None = None,
        storage: Storage | None = None,
        first_stage: FirstStage | None = None,
        stage_options: Mapping[str, Any] | None = None,
        pool_factor: float | None = None,
        long_documents: LongDocuments | None = None,
        keep_old: bool = False,
        workers: int | Sequence[str] = 0,
        progress: Callable[[int], None] | None = None,
    ) -> MigrationReport:
        """Change what was chosen when the collection was created, while it is in use.

        The new collection is built beside the old one, which is searched until the new one replaces it in one
        step: on a server an alias moves, in a folder one file is replaced. Stopped or killed before that, the old
        collection is as it was, and the same call goes on where it stopped. This object, and others that have the
        name open on a server, then use the new one.

        Where only ``storage`` or ``first_stage`` changes, vectors are copied. Anything else encodes the texts again:
        heads are not weight-tied, so 64 dimensions are not the half of 128.

        Args:
            dim: Another Matryoshka dimension.
            encoder: Another model.
            storage: As for :meth:`create`, as are the next four.
            first_stage: See :meth:`create`.
            stage_options: See :meth:`create`.
            pool_factor: See :meth:`create`.
            long_documents: See :meth:`create`.
            keep_old: On a server, keep the old collection for those who have it open; :attr:`MigrationReport.old`
                names it.
            workers: As for :meth:`ingest`.
            progress: Called now and then with the number of documents done since.

        Raises:
            InvalidOptionError: The collection is like that already.
            UnknownDimError: The model has no head for ``dim``.
            CollectionError: Others write faster than this one encodes.
        """
        target = Target(
            encoder=os.fspath(encoder) if isinstance(encoder, (str, os.PathLike)) else encoder,
            dim=dim,
            storage=storage,
            first_stage=first_stage,
            stage_options=stage_options,
            pool_factor=pool_factor,
            long_documents=long_documents,
        )
        return migrate(self, target, keep_old=keep_old, progress=progress, workers=workers)

    def verify(
        self, *, sample: int = 20, seed: int = 0, progress: Callable[[int], None] | None = None
    ) -> VerificationReport:
        """Read every document, and encode some of them anew.

        Checked are the count, ids, payloads (by their hash), the vectors' dimension and numbers, the first stage's
        vectors, and of a random sample that the vectors are those of the text.

        Args:
            sample: How many documents to encode.
            seed: Of the choice.
            progress: Called with 1 for each document read.
        """
        return self._with_current(lambda current: verify(current, sample=sample, seed=seed, progress=progress))

    def snapshot(self, file: str | os.PathLike[str], *, progress: Callable[[int], None] | None = None) -> SnapshotInfo:
        """Write the whole collection to a file, as of now: writers wait, readers do not.

        :meth:`ColbertCollection.restore` makes a collection of it on any engine, without encoding.

        Raises:
            SnapshotError: The file is there already.
        """
        with self._writing:
            return self._with_current(
                lambda current: write_snapshot(current.engine, current.schema, Path(file), progress)
            )
