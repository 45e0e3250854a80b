"""Writing files and folders: complete or absent, through no link, and beside others that do the same."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from jcv2_plugin.errors import DiskFullError
from jcv2_plugin.files import new_file, new_folder, write_atomically

_LEFT = "0123456789abcdef"


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def test_links_are_replaced_and_never_written_through(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    there = tmp_path / "there"
    there.mkdir()
    for name in ("state.json", "state.json.tmp", f".state.json-{_LEFT}.tmp"):
        (there / name).symlink_to(victim)
    write_atomically(there / "state.json", "new")
    assert (victim.read_text(), (there / "state.json").read_text()) == ("precious", "new")
    assert not (there / "state.json").is_symlink()


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "file"):
        raise KeyboardInterrupt
    assert (names(tmp_path), (tmp_path / "file").read_text()) == (["file"], "old")


def test_two_at_one_file_and_the_first_to_finish_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(FileExistsError), new_file(path, replace=False):
        path.write_text("fast")
    assert (names(tmp_path), path.read_text()) == (["file"], "fast")


def test_two_at_one_folder_and_the_first_to_finish_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with pytest.raises(OSError, match="not empty"), new_folder(path), new_folder(path) as fast:
        (fast / "who").write_text("fast")
    assert (names(tmp_path), (path / "who").read_text()) == (["out"], "fast")


@pytest.mark.skipif(os.name == "nt", reason="Windows tells by other means what is in use")
def test_what_killed_processes_left_is_deleted_but_not_what_is_in_use(tmp_path: Path) -> None:
    (tmp_path / f".out-{_LEFT}.tmp").mkdir()
    (tmp_path / f".file-{_LEFT}.tmp").write_text("half")
    (tmp_path / f".file-other-{_LEFT}.tmp").write_text("half of another one")
    with new_file(tmp_path / "file"), new_folder(tmp_path / "out"):
        write_atomically(tmp_path / "file", "meanwhile")
    assert names(tmp_path) == [f".file-other-{_LEFT}.tmp", "file", "out"]


def test_a_folder_that_was_about_to_be_replaced_when_the_process_was_killed_is_put_back(tmp_path: Path) -> None:
    (tmp_path / f".out-{_LEFT}.old").mkdir()
    (tmp_path / f".out-{_LEFT}.old" / "model").write_text("good")
    with pytest.raises(FileExistsError), new_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "model").read_text() == "good"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/0"),
        Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["os", "torch", "safetensors"],
)
@pytest.mark.parametrize("new", [new_file, new_folder])
def test_a_full_disk_is_named_with_the_path(tmp_path: Path, new: Callable[..., object], error: Exception) -> None:
    with (
        pytest.raises(DiskFullError, match=f"The disk is full: '{tmp_path}/out' could not be written"),
        new(tmp_path / "out"),
    ):  # type: ignore[attr-defined]
        raise error
    assert names(tmp_path) == []
