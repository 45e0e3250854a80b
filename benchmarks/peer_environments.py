"""A virtual environment for each peer, with pinned packages, under build/peers.

A peer whose torch is ours (``SHARES``) sees the packages of the interpreter that runs this behind its own, so that
torch's gigabyte is there once and torch is the same for both. One that cannot be installed is told with the reason.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = Path(__file__).resolve().parent / "peers"
FOLDER = ROOT / "build" / "peers"
_SHARED = "behind.pth"
_READY = "ready"


@dataclass(frozen=True)
class Peer:
    """A package to compare with.

    Attributes:
        name: As reported, and of its files: ``peers/worker_<name>.py`` and ``peers/<name>.txt``.
        shares: Whether our packages are behind its own.
        dependencies: Whether pip installs what the pinned packages ask for, too. Where not, the pins are complete.
        own: False for what runs in our own environment.
    """

    name: str
    shares: bool = True
    dependencies: bool = True
    own: bool = True

    @property
    def worker(self) -> Path:
        """The script that drives it."""
        return PINS / f"worker_{self.name.replace('-', '_')}.py"


class PeerUnavailableError(RuntimeError):
    """A peer that cannot be installed or started here, with the reason."""


PEERS = {
    peer.name: peer
    for peer in (
        Peer("jcv2", own=False),
        Peer("jcv2-openvino", own=False),
        Peer("qdrant-local", own=False),
        Peer("sentence-transformers"),
        # PyLate 1.6 asks for a fast-plaid that asks for torch 2.11; only its index needs it.
        Peer("pylate", dependencies=False),
        Peer("fastembed"),
        # Its extension is built for one version of torch, and crashes on another.
        Peer("fast-plaid", shares=False),
        Peer("int8"),
    )
}


def python_of(peer: Peer) -> Path:
    """The interpreter of a peer's environment, which is made or made anew where its pins have changed.

    Raises:
        PeerUnavailableError: pip could not install it.
    """
    if not peer.own:
        return Path(sys.executable)
    pins = PINS / f"{peer.name}.txt"
    stamp = hashlib.sha256(f"{pins.read_text(encoding='utf-8')}{sys.version}{peer}".encode()).hexdigest()
    folder = FOLDER / f"{peer.name}-{_version(pins, peer.name)}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ready = folder / _READY
    if ready.is_file() and ready.read_text(encoding="ascii") == stamp:
        return python
    print(f"Setting up {folder.name}, once", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    if peer.shares:
        paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
        # The peer's own packages come first; ours are found behind them, editable ones included.
        ours = sysconfig.get_paths()["purelib"]
        Path(paths["purelib"], _SHARED).write_text(f"import site; site.addsitedir({ours!r})\n", encoding="utf-8")
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(pins)]
    done = subprocess.run(
        command if peer.dependencies else [*command, "--no-deps"], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise PeerUnavailableError(f"pip cannot install {pins.name}: {done.stderr.strip()[-600:]}")
    ready.write_text(stamp, encoding="ascii")
    return python


def _version(pins: Path, name: str) -> str:
    for line in pins.read_text(encoding="utf-8").splitlines():
        package, equal, pinned = line.partition("==")
        if equal and package.strip() == name:
            return pinned.strip().removesuffix(".*")
    return "tools"
