"""Encode in several processes, one per device."""

from __future__ import annotations

import os
import pickle
import signal
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from jcv2_plugin.checks import check_integer
from jcv2_plugin.collection.state import own_vectors
from jcv2_plugin.errors import InvalidOptionError, Jcv2Error, ModelNotFoundError

if TYPE_CHECKING:
    from jcv2_plugin.encoder.base import Encoder
    from jcv2_plugin.encoder.model import JinaColbertEncoder
    from jcv2_plugin.encoder.windows import LongDocuments
    from jcv2_plugin.engines.base import Matrix
    from jcv2_plugin.engines.first_stage import FirstStage, StageVector

Encoded: TypeAlias = "tuple[list[Matrix], list[dict[str, StageVector]]]"
"""Token vectors of texts, and their vectors by the user's own first stages."""


class WorkerError(Jcv2Error):
    """An encoder process ended unexpectedly."""


def as_devices(workers: int | Sequence[str]) -> list[str]:
    """Return the device of each worker. A number of workers is spread over the available GPUs, or uses the CPU."""
    if isinstance(workers, Sequence) and not isinstance(workers, str) and all(isinstance(one, str) for one in workers):
        return list(workers)
    try:
        number = check_integer(workers, "workers", least=0)
    except InvalidOptionError:
        raise InvalidOptionError(f"workers must be 0 or more, or a list of devices, got {workers!r:.60}.") from None
    if number == 0:
        return []
    import torch

    gpus = torch.cuda.device_count()
    return [f"cuda:{one % gpus}" if gpus else "cpu" for one in range(number)]


class EncoderPool:
    """Pool of encoder processes, used as a context manager.

    Each process loads the model from its original source, which is faster than sending the weights and needs no shared
    memory. First stages of the user's own are pickled; InvalidOptionError if one cannot be.
    """

    def __init__(self, encoder: Encoder, devices: Sequence[str], own: Mapping[str, FirstStage] | None = None) -> None:
        from jcv2_plugin.encoder.model import JinaColbertEncoder

        if not isinstance(encoder, JinaColbertEncoder):
            raise InvalidOptionError(
                f"workers load models on this machine, and {encoder.reference} encodes elsewhere. Leave out workers; "
                "RemoteEncoder(parallel=...) sets how many requests are made at a time."
            )
        pickled = [_pickled(stage) for stage in (own or {}).values()]
        self._saved: tempfile.TemporaryDirectory[str] | None = None
        reference, options = encoder.reference, encoder.loading_options()
        if encoder.source is None or encoder.skiplist == "custom":
            self._saved = tempfile.TemporaryDirectory(prefix="jcv2-model-")
            encoder.save_pretrained(self._saved.name)
            reference, options["revision"] = self._saved.name, None
        context = get_context("spawn")
        turns = context.Queue()
        on_cpu = sum(device == "cpu" for device in devices)
        for device in devices:
            turns.put((device, max(1, (os.cpu_count() or 1) // on_cpu) if device == "cpu" else None))
        weights = {dim: encoder.head_fingerprint(dim) for dim in encoder.dims}
        self._pool = ProcessPoolExecutor(
            len(devices),
            mp_context=context,
            initializer=_start,
            initargs=(turns, reference, options, weights, pickled),
        )

    def submit(
        self, texts: Sequence[str], dim: int, long_documents: LongDocuments, pool_factor: float
    ) -> Future[Encoded]:
        """Submit texts to be encoded by the next free process."""
        return self._pool.submit(_encode, list(texts), dim, long_documents, pool_factor)

    def __enter__(self) -> EncoderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._saved is not None:
            self._saved.cleanup()
        if isinstance(error, BrokenProcessPool):
            raise WorkerError(
                "An encoder process came to an end: out of memory, killed, or its model could not be loaded (its own "
                "words are above). What was stored before stays; run it again with fewer workers, or with none."
            ) from error


def _pickled(stage: FirstStage) -> bytes:
    try:
        return pickle.dumps(stage)
    except Exception as error:  # of any kind: objects may define how they are pickled
        raise InvalidOptionError(
            f"The first stage {stage.name!r} cannot be sent to the workers, because it cannot be pickled: {error} Give "
            "it a __getstate__ that leaves that out, or ingest with workers=0."
        ) from error


_encoder: Any = None
_own: list[Any] = []


def _start(
    turns: Any, reference: str, options: dict[str, Any], weights: dict[int, str], pickled: Sequence[bytes]
) -> None:
    """Initialise a new process: take a device and load the model onto it, and the user's own first stages."""
    global _encoder, _own
    # Ignore Ctrl-C: the parent receives it too and stores what is encoded. Do this first, since imports take seconds.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch

    device, threads = turns.get()
    if threads is not None:
        torch.set_num_threads(threads)
    if device.startswith("cuda"):
        torch.cuda.set_device(device)  # for the first stages, which may choose it themselves
    _own = [pickle.loads(stage) for stage in pickled]
    _encoder = _load(reference, device, options, weights)


def _end_with_parent() -> None:
    """Wait for the end of the parent process, which may be killed, and end this one."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _load(reference: str, device: str, options: dict[str, Any], weights: dict[int, str]) -> JinaColbertEncoder:
    """Load the model and check that its weights match those of the parent's model."""
    from jcv2_plugin.encoder.model import JinaColbertEncoder

    encoder = JinaColbertEncoder.from_pretrained(
        Path(reference) if Path(reference).is_dir() else reference, device=device, **options
    )
    if {dim: encoder.head_fingerprint(dim) for dim in weights} != weights:
        raise ModelNotFoundError(
            f"{reference!r} has other weights than the model that was loaded from it. Where the model was changed "
            "since, save it and load it from there, or encode without workers."
        )
    return encoder


def _encode(texts: list[str], dim: int, long_documents: LongDocuments, pool_factor: float) -> Encoded:
    encoded: list[Matrix] = _encoder.document_vectors(texts, dim, long_documents, pool_factor)
    return encoded, own_vectors(_own, texts)
