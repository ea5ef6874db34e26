"""The file system of these tests: a power cut keeps synced data, and nothing else."""

import errno
import os

import pytest

from tests.power.conftest import sync_folder

pytestmark = [pytest.mark.fuse, pytest.mark.xdist_group("power")]

BOTH = pytest.mark.parametrize("model", ["journal", "posix"])


@pytest.fixture
def machine(new_machine, model):
    return new_machine(model)


def write(path, data, flags=0):
    """Append to a file, which is created if it is missing. Returns the open descriptor."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | flags)
    assert os.write(descriptor, data) == len(data)
    return descriptor


def synced(path, data):
    """Append to a file, and sync it and its folder."""
    descriptor = write(path, data)
    os.fsync(descriptor)
    os.close(descriptor)
    sync_folder(path.parent)


def cut(machine, seed=None):
    machine.power_off()
    machine.power_on(seed)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@BOTH
def test_files_are_read_as_they_were_written(machine):
    file = machine.folder / "file"
    os.close(write(file, b"one "))
    os.close(write(file, b"two"))
    with file.open("r+b") as opened:
        opened.seek(2)
        opened.write(b"E")
        opened.seek(9)
        opened.write(b"end")
    assert file.read_bytes() == b"onE two\0\0end"
    os.truncate(file, 3)
    assert file.read_bytes() == b"onE"
    assert file.stat().st_size == 3
    (machine.folder / "sub").mkdir()
    file.rename(machine.folder / "sub" / "other")
    assert [path.name for path in machine.folder.iterdir()] == ["sub"]
    with pytest.raises(OSError, match="not empty"):
        (machine.folder / "sub").rmdir()
    (machine.folder / "sub" / "other").unlink()
    (machine.folder / "sub").rmdir()
    assert list(machine.folder.iterdir()) == []


@BOTH
def test_file_that_was_removed_while_open_is_still_readable(machine):
    file = machine.folder / "file"
    file.write_bytes(b"kept")
    with file.open("rb") as opened:
        file.unlink()
        assert opened.read() == b"kept"


@BOTH
def test_synced_contents_are_kept_and_later_ones_are_lost(machine):
    file = machine.folder / "file"
    synced(file, b"kept")
    os.close(write(file, b"lost"))
    assert file.read_bytes() == b"keptlost"
    assert machine.unsynced == 4
    cut(machine)
    assert file.read_bytes() == b"kept"
    assert machine.unsynced == 0


@BOTH
def test_overwritten_contents_and_new_sizes_come_back(machine):
    file = machine.folder / "file"
    synced(file, b"12345678")
    with file.open("r+b") as opened:
        opened.write(b"xx")
    os.truncate(file, 4)
    assert file.read_bytes() == b"xx34"
    cut(machine)
    assert file.read_bytes() == b"12345678"


@BOTH
@pytest.mark.parametrize("flag", [os.O_SYNC, os.O_DSYNC])
def test_write_to_a_file_opened_for_synced_writes_is_kept(machine, flag):
    file = machine.folder / "file"
    synced(file, b"")
    os.close(write(file, b"kept", flag))
    os.close(write(file, b"lost"))
    cut(machine)
    assert file.read_bytes() == b"kept"


@BOTH
def test_fdatasync_keeps_contents_and_size(machine):
    file = machine.folder / "file"
    synced(file, b"")
    descriptor = write(file, b"kept")
    os.fdatasync(descriptor)
    os.close(descriptor)
    cut(machine)
    assert file.read_bytes() == b"kept"


@BOTH
def test_closing_a_file_syncs_nothing(machine):
    file = machine.folder / "file"
    synced(file, b"")
    os.close(write(file, b"lost"))
    cut(machine)
    assert file.read_bytes() == b""


@BOTH
def test_new_names_removals_and_renames_are_lost_without_a_sync(machine):
    for name in ("removed", "renamed"):
        synced(machine.folder / name, name.encode())
    (machine.folder / "new").write_bytes(b"lost")
    (machine.folder / "folder").mkdir()
    (machine.folder / "removed").unlink()
    (machine.folder / "renamed").rename(machine.folder / "other")
    cut(machine)
    assert contents(machine.folder) == {"removed": b"removed", "renamed": b"renamed"}
    assert not (machine.folder / "folder").exists()


@BOTH
def test_new_names_removals_and_renames_are_kept_when_the_folder_was_synced(machine):
    for name in ("removed", "renamed"):
        synced(machine.folder / name, name.encode())
    (machine.folder / "new").write_bytes(b"the contents are not synced")
    (machine.folder / "removed").unlink()
    (machine.folder / "renamed").rename(machine.folder / "other")
    sync_folder(machine.folder)
    cut(machine)
    assert contents(machine.folder) == {"new": b"", "other": b"renamed"}


@pytest.mark.parametrize(("model", "is_kept"), [("journal", True), ("posix", False)])
def test_syncing_a_new_file_keeps_its_name_on_a_journal_only(machine, is_kept):
    descriptor = write(machine.folder / "new", b"synced")
    os.fsync(descriptor)
    os.close(descriptor)
    cut(machine)
    assert contents(machine.folder) == ({"new": b"synced"} if is_kept else {})


@BOTH
def test_replacement_of_a_file_is_lost_until_the_folder_is_synced(machine):
    file, new = machine.folder / "file", machine.folder / "new"
    synced(file, b"first")
    os.close(write(new, b"second", os.O_SYNC))
    new.rename(file)
    cut(machine)
    assert file.read_bytes() == b"first"
    new.unlink(missing_ok=True)
    os.close(write(new, b"second", os.O_SYNC))
    new.rename(file)
    sync_folder(machine.folder)
    cut(machine)
    assert file.read_bytes() == b"second"


@pytest.mark.parametrize(
    ("model", "expected"), [("journal", b"second"), ("posix", b"first")], ids=["journal", "posix"]
)
def test_sync_of_another_file_commits_a_replacement_on_a_journal_only(machine, expected):
    file, new = machine.folder / "file", machine.folder / "new"
    synced(file, b"first")
    os.close(write(new, b"second", os.O_SYNC))
    new.rename(file)
    os.close(write(machine.folder / "another", b"x", os.O_SYNC))
    cut(machine)
    assert file.read_bytes() == expected


@BOTH
def test_machine_without_power_fails_all_calls_and_open_files_stay_unusable(machine):
    file = machine.folder / "file"
    synced(file, b"kept")
    with file.open("rb") as opened:
        machine.power_off()
        for attempt in (file.read_bytes, opened.read, lambda: list(machine.folder.iterdir())):
            with pytest.raises(OSError, match="Input/output") as failed:
                attempt()
            assert failed.value.errno == errno.EIO
        machine.power_on()
        with pytest.raises(OSError, match="Input/output"):
            opened.read()
    assert file.read_bytes() == b"kept"


@BOTH
def test_power_of_one_machine_does_not_affect_the_others(machine, new_machine, model):
    other = new_machine(model)
    for each in (machine, other):
        synced(each.folder / "file", b"kept")
        os.close(write(each.folder / "file", b" unsynced"))
    cut(machine)
    assert (machine.folder / "file").read_bytes() == b"kept"
    assert (other.folder / "file").read_bytes() == b"kept unsynced"


@BOTH
def test_seed_keeps_some_of_the_unsynced_writes(machine):
    file = machine.folder / "file"
    synced(file, b"." * 32)
    with file.open("r+b", buffering=0) as opened:
        for _ in range(32):
            opened.write(b"x")
    cut(machine, seed=1)
    data = file.read_bytes()
    assert len(data) == 32
    assert set(data) == set(b".x")
