"""Writing files and folders: complete or absent, through no link, and beside others that do the same."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jcv2_plugin.errors import DiskFullError
from jcv2_plugin.files import (
    filled_folder,
    new_file,
    new_folder,
    numbered_lines,
    read_json,
    read_settings,
    write_atomically,
)

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


@pytest.mark.parametrize("path", ["/dev/null", "/dev/stdout"])
def test_devices_are_not_replaced(path: str) -> None:
    before = os.lstat(path)
    with pytest.raises(OSError, match="not a regular file"):
        write_atomically(Path(path), "text")
    assert os.path.samestat(os.lstat(path), before)


def test_a_folder_that_is_filled_keeps_other_files_and_follows_no_link(tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "model"
    victim.write_text("mine")
    (folder / "sub").mkdir(parents=True)
    (folder / "config.json").symlink_to(victim)
    (folder / "other.txt").write_text("other")
    for _ in range(2):
        with filled_folder(folder) as staging:
            (staging / "sub").mkdir()
            (staging / "sub" / "a").write_text("a")
            (staging / "config.json").write_text("new")
    assert victim.read_text() == "mine"
    assert sorted(str(one.relative_to(folder)) for one in folder.rglob("*")) == [
        "config.json", "other.txt", "sub", "sub/a"]  # fmt: skip
    assert (folder / "config.json").read_text() == "new"

    def fill(name: str, error: Exception | None = None) -> None:
        with filled_folder(folder) as staging:
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_text("half")
            if error is not None:
                raise error

    with pytest.raises(ValueError, match="stopped"):
        fill("config.json", ValueError("stopped"))
    assert (folder / "config.json").read_text() == "new"
    shutil.rmtree(folder / "sub")
    (folder / "sub").symlink_to(tmp_path)
    with pytest.raises(FileExistsError, match="is a link"):
        fill("sub/victim")
    assert victim.read_text() == "mine"
    assert not list(folder.glob(".*"))
    with filled_folder(tmp_path / "new") as staging:
        (staging / "a").write_text("a")
    assert (tmp_path / "new" / "a").read_text() == "a"


def test_only_regular_files_of_a_sane_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "huge").open("wb").truncate(2**33)
    for read in (read_settings, read_json, lambda path: list(numbered_lines(path))):
        for name, said in (("fifo", "not a regular file"), ("huge", "than 64 MiB")):
            with pytest.raises(ValueError, match=said):
                read(tmp_path / name)  # type: ignore[operator]
        with pytest.raises(ValueError, match="not a regular file"):
            read(Path("/dev/zero"))  # type: ignore[operator]
    (tmp_path / "lines").write_bytes(b"a\n\nb")
    assert list(numbered_lines(tmp_path / "lines")) == [(1, b"a\n"), (2, b"\n"), (3, b"b")]
