"""Files and folders that are whole or not there."""

import errno
import hashlib
import os
import resource
import shutil
from contextlib import contextmanager

import pytest
from safetensors import SafetensorError

from ouroboros_core import files
from ouroboros_core.errors import UserError
from ouroboros_core.files import need_room, sha256, write, written_aside

FULL = OSError(errno.ENOSPC, "No space left on device")


def full(*args):
    raise FULL


@contextmanager
def no_file_longer_than(size):
    """As on a disk that is nearly full, for this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def begun(target, text, error=None):
    """Write a folder aside; perhaps fail before its end."""
    with written_aside(target) as aside:
        (aside / "deep").mkdir()
        (aside / "deep" / "a.txt").write_text(text)
        if error:
            raise error


def test_a_folder_appears_whole_when_its_scope_ends(tmp_path):
    with written_aside(tmp_path / "up" / "run") as aside:
        (aside / "a.txt").write_text("one")
        assert not (tmp_path / "up" / "run").exists()
        assert aside.parent == tmp_path / "up"
    assert [path.name for path in (tmp_path / "up").iterdir()] == ["run"]
    assert (tmp_path / "up" / "run" / "a.txt").read_text() == "one"


@pytest.mark.parametrize("error", [ZeroDivisionError(), KeyboardInterrupt(), SystemExit(), RuntimeError()])
def test_an_exception_leaves_nothing_behind(tmp_path, error):
    with pytest.raises(type(error)):
        begun(tmp_path / "run", "one", error)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_leaves_what_was_there_before(tmp_path):
    begun(tmp_path / "run", "one")
    with pytest.raises(ZeroDivisionError):
        begun(tmp_path / "run", "two", ZeroDivisionError())
    assert (tmp_path / "run" / "deep" / "a.txt").read_text() == "one"


@pytest.fixture
def old(tmp_path):
    """A folder that somebody has written already."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old.txt").write_text("old")
    return tmp_path / "run"


def test_a_folder_is_replaced_whole_where_that_is_asked_for(old):
    with written_aside(old, replace=True) as aside:
        (aside / "new.txt").write_text("new")
    assert [path.name for path in old.iterdir()] == ["new.txt"]


def test_a_folder_that_somebody_has_is_left_alone(old):
    with pytest.raises(FileExistsError), written_aside(old) as aside:
        (aside / "new.txt").write_text("new")
    assert [path.name for path in old.iterdir()] == ["old.txt"]
    assert [path.name for path in old.parent.iterdir()] == ["run"]


def test_everything_is_synced_before_the_folder_appears(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append((tmp_path / "run").exists()))
    begun(tmp_path / "run", "one")
    assert synced == [False, False, False, True]  # the file, its folder, the folder itself; the place it appeared in


@pytest.mark.parametrize("error", [FULL, SafetensorError("I/O error: No space left on device (os error 28)")])
def test_a_full_disk_is_one_clear_line(tmp_path, error):
    with pytest.raises(UserError, match=r"run: no space left on the disk\. What was saved before is whole") as caught:
        begun(tmp_path / "run", "one", error)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_at_the_very_end_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left on the disk"):
        begun(tmp_path / "run", "one")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_no_folder_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/run: cannot be written: "):
        begun(tmp_path / "file" / "run", "one")


def test_a_file_is_replaced_whole(tmp_path):
    write(tmp_path / "a.json", "one")
    write(tmp_path / "a.json", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "two"


def test_a_file_that_does_not_fit_leaves_the_old_one(tmp_path):
    write(tmp_path / "a.json", "one")
    with no_file_longer_than(100), pytest.raises(UserError, match=r"a\.json: cannot be written: File too large"):
        write(tmp_path / "a.json", "two" * 100)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "one"


def test_a_file_on_a_full_disk_leaves_the_old_one(tmp_path, monkeypatch):
    write(tmp_path / "a.json", "one")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a\.json: no space left on the disk"):
        write(tmp_path / "a.json", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_does_not_fit_is_refused_before_it_begins(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    with pytest.raises(UserError, match=r"runs/new: the run needs [\d,]+ MB of disk and [\d,]+ MB are free"):
        need_room(tmp_path / "runs" / "new", 2 * free)
    assert list(tmp_path.iterdir()) == []


def test_the_room_is_asked_of_the_disk_the_folder_will_be_on(tmp_path, monkeypatch):
    asked = []
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda place: asked.append(place) or usage)
    need_room(tmp_path / "runs" / "new", 1)
    assert asked == [tmp_path]


def test_a_relative_folder_has_room_where_we_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^runs/new: the run needs"):
        need_room(files.Path("runs/new"), 10**18)


def test_the_checksum_is_that_of_the_bytes(tmp_path):
    content = os.urandom(100_000)
    (tmp_path / "a").write_bytes(content)
    assert sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
