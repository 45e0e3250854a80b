"""Maintenance of a collection: migrate, verify and snapshot."""

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
    """Maintenance methods of a collection."""

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
        """Change settings chosen at creation, such as the dimension or the model, while the collection is in use.

        The new collection is built beside the old one, which stays searchable, and then replaces it in one step: on a
        server an alias moves, in a folder one file is replaced. If the migration is interrupted before that, the old
        collection is unchanged and the same call resumes. Afterwards, this object and, on a server, all others that
        have the name open use the new collection.

        If only ``storage`` or ``first_stage`` changes, vectors are copied, unless the new storage is more precise. All
        other changes encode the texts again: projection heads are not weight-tied, so 64-dimensional vectors are not
        the first half of 128-dimensional ones.

        Args:
            dim: New Matryoshka dimension.
            encoder: New encoder, or the name or path of a model.
            storage: See :meth:`create`.
            first_stage: See :meth:`create`.
            stage_options: See :meth:`create`.
            pool_factor: See :meth:`create`.
            long_documents: See :meth:`create`.
            keep_old: On a server, keep the old collection for readers that have it open. Its name is
                :attr:`MigrationReport.old`.
            workers: See :meth:`ingest`.
            progress: Called periodically with the number of documents processed since the last call.

        Raises:
            InvalidOptionError: Nothing would change.
            UnknownDimError: The model has no projection head for ``dim``.
            CollectionError: A migration is already running, or other processes write faster than documents are
                encoded.
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
        """Verify the collection by reading every document and encoding a random sample again.

        Checks the number of documents, the ids, the payloads (by their hash), the vectors' dimension and values, and
        the first-stage vectors. For the sample, also checks that the stored vectors match the text.

        Args:
            sample: Number of documents to encode again.
            seed: Seed for the sample.
            progress: Called with 1 for each document read.
        """
        return self._with_current(lambda current: verify(current, sample=sample, seed=seed, progress=progress))

    def snapshot(self, file: str | os.PathLike[str], *, progress: Callable[[int], None] | None = None) -> SnapshotInfo:
        """Write a snapshot of the whole collection to a file. Writes wait, reads do not.

        :meth:`ColbertCollection.restore` restores it on any engine, without encoding.

        Args:
            file: Path of the snapshot file. It must not exist.
            progress: Called periodically with the number of documents written since the last call.

        Raises:
            SnapshotError: The file already exists.
        """
        with self._writing:
            return self._with_current(
                lambda current: write_snapshot(current.engine, current.schema, Path(file), progress)
            )
