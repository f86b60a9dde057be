from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from anyorder.errors import UserError
from anyorder.whole import check_place, whole_file, whole_folder


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
