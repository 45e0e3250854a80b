"""What the tasks of a run share: its files, its workers, and which peers it had to do without."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import peer_texts
from encoded import say
from peer_environments import PeerUnavailableError
from peer_process import Worker

from jcv2_plugin import JinaColbertEncoder

OURS = "jcv2"
INT8 = f"{OURS}, int8"
OPENVINO = f"{OURS}, OpenVINO"
WINDOW = 300


def window_of(kind: str) -> int:
    """Of the model that encodes a kind of :data:`peer_texts.LENGTHS`."""
    return peer_texts.LONG if peer_texts.LENGTHS[kind] > WINDOW else WINDOW


class Bench:
    """Where a run's files lie, and which peers it cannot have.

    Args:
        scratch: A folder for texts, vectors and indexes.
        models: A folder for checkpoints, kept between runs.
        threads: Of every engine.
        peers: Names to compare with.
        dim: Of all vectors.

    Attributes:
        unavailable: Reasons by what is left out.
        versions: Of all packages, those of peers with the peer's name in front.
        source: The docstrings.
    """

    def __init__(self, scratch: Path, models: Path, threads: int, peers: Sequence[str], dim: int) -> None:
        self.scratch, self.models, self.threads, self.peers, self.dim = scratch, models, threads, peers, dim
        self.unavailable: dict[str, str] = {}
        self.versions: dict[str, str] = {}
        self.source = peer_texts.docstrings()
        self.tokenizer = JinaColbertEncoder.from_pretrained("mini", dims=dim, device="cpu").tokenizer

    def tokens(self, text: str) -> int:
        """Tokens of a text, without those that a model adds."""
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def checkpoint(self, window: int = WINDOW) -> Path:
        """The model for all peers; see :func:`peer_texts.checkpoint`."""
        self.models.mkdir(parents=True, exist_ok=True)
        return peer_texts.checkpoint(self.models, self.dim, window)

    @contextlib.contextmanager
    def workers(self, peers: Mapping[str, str], model: Path | None) -> Iterator[dict[str, Worker]]:
        """Loaded workers, by names of their own, of peers; of those that fail the reason is kept, but for ours."""
        with contextlib.ExitStack() as stack:
            started: dict[str, Worker] = {}

            def start(name: str, peer: str) -> dict[str, str]:
                started[name] = stack.enter_context(Worker(name, peer, self.threads))
                versions: dict[str, str] = started[name].load(model)["versions"]
                return versions

            for name, peer in peers.items():
                if peer not in (OURS, *self.peers):
                    continue
                versions = self.attempt(name, "start", lambda name=name, peer=peer: start(name, peer))  # type: ignore[misc]
                if versions is None:
                    started.pop(name, None)
                    continue
                mine = peer == OURS
                self.versions.update({key if mine else f"{peer}: {key}": value for key, value in versions.items()})
            yield started

    def attempt(self, name: str, what: str, work: Callable[[], Any]) -> Any:
        """The value of ``work``; None, with the reason kept, where the peer fails. Ours must not."""
        try:
            return work()
        except PeerUnavailableError as error:
            if name == OURS:
                raise
            self.unavailable[f"{name}, {what}"] = str(error)
            say(f"{name} is left out ({what}): {error}")
            return None
