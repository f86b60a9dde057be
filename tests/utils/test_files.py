from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from safetensors import SafetensorError

from anyorder.errors import UserError
from anyorder.utils.files import (
    BeingWrittenError,
    DiskError,
    TakenError,
    check_place,
    claimed,
    damage,
    growing_folder,
    overwriting,
    seal,
    whole_file,
    whole_folder,
)


def test_a_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder"
    with whole_folder(target) as partial:
        (partial / "a").write_text("1")
        assert not target.exists()
        assert partial.parent == target.parent, "renaming must stay within one file system"
    assert (target / "a").read_text() == "1"
    assert [entry.name for entry in target.parent.iterdir()] == ["folder"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with whole_folder(target) as partial:
        (partial / "a").write_text("1")
    assert [entry.name for entry in target.iterdir()] == ["a"]


def fail_in(output: AbstractContextManager[Path], name: str, failure: type[BaseException]) -> None:
    with output as partial:
        (partial / name).write_text("1")
        raise failure


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, UserError])
def test_nothing_stays_after_a_failure(tmp_path: Path, failure: type[BaseException]) -> None:
    with pytest.raises(failure):
        fail_in(whole_folder(tmp_path / "folder"), "a", failure)
    with pytest.raises(failure):
        fail_in(whole_file(tmp_path / "file"), "", failure)
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"output folder '.*' is not empty: give a new folder"), whole_folder(tmp_path):
        pass
    with pytest.raises(UserError, match=r"output '.*file' is a file: give a folder"), whole_folder(tmp_path / "file"):
        pass
    with pytest.raises(UserError, match=r"file '.*file' is there already: give a new"), whole_file(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("folder", [False, True])
def test_places_are_checked_without_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: bool) -> None:
    check_place(tmp_path / "new" / "place", folder=folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(
        UserError, match=r"output '.*place' cannot be written \('.*file' is a file\): give another place"
    ):
        check_place(tmp_path / "file" / "place", folder=folder)
    with pytest.raises(UserError, match=r"cannot be written \(File name too long\): give another place"):
        check_place(tmp_path / ("long" * 100), folder=folder)
    monkeypatch.setattr("os.access", lambda *_: False)  # who runs the tests may be allowed everything
    with pytest.raises(UserError, match=r"cannot be written \('.*' is not open for writing\): give another place"):
        check_place(tmp_path / "new" / "place", folder=folder)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written \(.+\): give another place"):  # noqa: SIM117
        with whole_folder(tmp_path / "file" / "folder"):
            pass


# ------------------------------------------------------------------------------------------------ processes


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_writes_is_not(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from anyorder.utils.files import whole_folder\n"
        "with whole_folder(Path(sys.argv[1])) as partial:\n"
        "    (partial / 'half').write_text('1'); print('ready', flush=True); time.sleep(60)"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "out")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        message = r"^output '.*out' is being written by another process: wait until that has finished, or give another"
        for write in (whole_folder, whole_file, claimed):
            with pytest.raises(BeingWrittenError, match=message), write(tmp_path / "out"):  # type: ignore[operator]
                pass
        assert (tmp_path / ".out.partial" / "half").is_file()
        process.kill()
        process.wait()
    assert (tmp_path / ".out.partial" / "half").is_file()
    with whole_folder(tmp_path / "out") as partial:
        assert list(partial.iterdir()) == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_forked_child_does_not_hold_the_lock(tmp_path: Path) -> None:
    """Such as a process that reads data, which outlives a killed training for some seconds."""
    with claimed(tmp_path / "out"):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    try:
        with claimed(tmp_path / "out"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (SafetensorError("Error while serializing: I/O error: (os error 28)"), "No space left on device"),
        (Exception("Disk quota exceeded (os error 122)"), "Disk quota exceeded"),
        (RuntimeError("[enforce fail at inline_container.cc:783] . PytorchStreamWriter failed"), "the file could not"),
    ],
)
def test_a_full_disk_is_one_sentence_whichever_library_writes(tmp_path: Path, error: Exception, reason: str) -> None:
    with pytest.raises(DiskError, match=rf"^output '.*out' cannot be written \({reason}.*\): give another place\.$"):  # noqa: SIM117
        with whole_folder(tmp_path / "out"):
            raise error
    assert list(tmp_path.iterdir()) == []


def test_a_sealed_folder_knows_each_change(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "a").write_bytes(b"abc")
    (tmp_path / "b").write_bytes(b"")
    assert damage(tmp_path) == "checksums.json is missing"
    seal(tmp_path)
    assert damage(tmp_path) is None
    (tmp_path / "below" / "a").write_bytes(b"abb")
    assert damage(tmp_path) == "below/a has changed"
    (tmp_path / "below" / "a").unlink()
    assert damage(tmp_path) == "below/a is missing"
    for text in ("[1", "3", "[[]]", "[" * 100_000, '{"b": 3}', '{"b": "0"}'):
        (tmp_path / "checksums.json").write_text(text)
        assert damage(tmp_path) is not None


# ------------------------------------------------------------------------------------------------ overwriting


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, UserError])
def test_what_is_overwritten_stays_until_the_new_is_whole(tmp_path: Path, failure: type[BaseException]) -> None:
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "config.json").write_text("old")
    file.write_text("old")
    with overwriting(True):
        with pytest.raises(failure):
            fail_in(whole_folder(folder), "config.json", failure)
        with pytest.raises(failure):
            fail_in(whole_file(file), "", failure)
        assert (folder / "config.json").read_text() == file.read_text() == "old"
        with whole_folder(folder) as partial:
            (partial / "new").write_text("1")
            assert (folder / "config.json").read_text() == "old"
        with whole_file(file) as partial:
            partial.write_text("1")
            assert file.read_text() == "old"
    assert file.read_text() == "1"
    assert [path.name for path in folder.iterdir()] == ["new"]
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file"}
    with pytest.raises(TakenError):
        check_place(file, folder=False)


@pytest.mark.parametrize("name", ["a.txt", ".git/config.json"])
def test_folders_of_others_are_not_overwritten(tmp_path: Path, name: str) -> None:
    file = tmp_path / "folder" / name
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    with overwriting(True), pytest.raises(UserError, match="something else than an output of anyorder"):
        check_place(tmp_path / "folder", folder=True)


def test_a_killed_process_loses_nothing(tmp_path: Path) -> None:
    """Between the two renamings the old folder is beside its place, and the next process puts it back first."""
    old = tmp_path / ".folder.old"
    old.mkdir()
    (old / "config.json").write_text("old")
    with overwriting(True), pytest.raises(RuntimeError), growing_folder(tmp_path / "folder", lambda folder: False):
        raise RuntimeError
    assert (tmp_path / "folder" / "config.json").read_text() == "old"
    assert not old.exists()


@pytest.mark.parametrize("worth_keeping", [False, True])
def test_a_growing_folder_replaces_the_old_one_once_it_is_worth_keeping(tmp_path: Path, worth_keeping: bool) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("old")

    def grow() -> None:
        with overwriting(True), growing_folder(folder, lambda folder: worth_keeping):
            folder.mkdir()
            (folder / "config.json").write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grow()
    assert (folder / "config.json").read_text() == ("new" if worth_keeping else "old")
    assert list(tmp_path.iterdir()) == [folder]
