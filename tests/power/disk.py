"""A file system that loses unsynced data at a power cut: `python disk.py FOLDER`.

Everything is in memory, twice: as programs see it, and as it is on the disk. Each top-level folder
is the disk of one machine. Its extended attributes control it:

    user.power      set to "off": from now on, every operation on it fails with EIO
                    set to "on": it starts again, with the synced data; "on 7" also keeps some of
                    the unsynced writes, chosen by the seed 7
                    set to "write back": everything so far becomes durable
    user.unsynced   how many written bytes are not synced
    user.syncs      how often programs have synced something

A file's contents and size become durable when the file is synced (fsync, fdatasync, or a write to a
file opened with O_SYNC or O_DSYNC). What else a sync makes durable depends on the model of the
mount:

    journal     any sync also commits all earlier changes of folders (created, renamed and removed
                files), as in ext4, XFS and btrfs. A file that was created but never synced is then
                empty.
    posix       changes of a folder become durable only when that folder is synced, which is all
                that POSIX promises (fsync(2), "Calling fsync() does not necessarily ensure that the
                entry in the directory containing the file has also reached disk").

It is unmounted when stdin ends. It is kept simple: no links, no permissions, no mmap, no fstat of a
removed file.
"""

import dataclasses
import errno
import itertools
import os
import random
import stat
import sys
import threading
import time

import mfusepy

FREE_BLOCKS = 1 << 20
BLOCK = 4096
SYNCED_WRITES = os.O_DSYNC  # which O_SYNC includes
_inodes = itertools.count(2)


@dataclasses.dataclass(eq=False)
class File:
    mode: int
    data: bytearray = dataclasses.field(default_factory=bytearray)
    synced: bytearray = dataclasses.field(default_factory=bytearray)
    pending: list = dataclasses.field(default_factory=list)
    """Writes (offset, bytes) and new sizes (size, None) since the last sync."""
    inode: int = dataclasses.field(default_factory=lambda: next(_inodes))
    changed: int = dataclasses.field(default_factory=time.time_ns)

    def change(self, offset, data):
        apply(self.data, offset, data)
        self.pending.append((offset, data))
        self.changed = time.time_ns()

    def sync(self):
        for change in self.pending:
            apply(self.synced, *change)
        self.pending.clear()

    def lose(self, chooser):
        for change in self.pending:
            if chooser is not None and chooser.random() < 0.5:
                apply(self.synced, *change)
        self.pending.clear()
        self.data = bytearray(self.synced)


@dataclasses.dataclass(eq=False)
class Folder:
    mode: int
    entries: dict = dataclasses.field(default_factory=dict)
    synced: dict = dataclasses.field(default_factory=dict)
    inode: int = dataclasses.field(default_factory=lambda: next(_inodes))
    changed: int = dataclasses.field(default_factory=time.time_ns)

    def change(self, name, node):
        self.entries.pop(name, None)
        if node is not None:
            self.entries[name] = node
        self.changed = time.time_ns()

    def sync(self):
        self.synced = dict(self.entries)

    def lose(self, chooser):
        self.entries = dict(self.synced)
        for node in self.entries.values():
            node.lose(chooser)


@dataclasses.dataclass(eq=False)
class Machine(Folder):
    is_on: bool = True
    starts: int = 0
    syncs: int = 0


@dataclasses.dataclass(frozen=True)
class Handle:
    node: object
    machine: Machine
    starts: int
    syncs_writes: bool


def apply(data, offset, change):
    """Carry out a change of a file's contents."""
    if change is None:
        del data[offset:]
        data.extend(bytes(offset - len(data)))
        return
    data.extend(bytes(max(0, offset - len(data))))
    data[offset : offset + len(change)] = change


def walk(folder):
    yield folder
    for node in folder.entries.values():
        if isinstance(node, Folder):
            yield from walk(node)
        else:
            yield node


class Disk(mfusepy.Operations):
    use_ns = True

    def __init__(self, model):
        self._commits_folders = {"journal": True, "posix": False}[model]
        self._root = Folder(0o755)
        self._handles = {}
        self._numbers = itertools.count(1)

    # Lookups

    def _machine(self, path):
        machine = self._root.entries.get(path.split("/")[1])
        if machine is not None and not machine.is_on:
            raise OSError(errno.EIO, path)
        return machine

    def _find(self, path):
        self._machine(path)
        node = self._root
        for part in path.split("/")[1:]:
            if part:
                if not isinstance(node, Folder):
                    raise OSError(errno.ENOTDIR, path)
                if part not in node.entries:
                    raise OSError(errno.ENOENT, path)
                node = node.entries[part]
        return node

    def _parent(self, path):
        folder, _, name = path.rpartition("/")
        return self._find(folder or "/"), name

    def _open(self, path, node, flags):
        number = next(self._numbers)
        machine = self._machine(path)
        starts = machine.starts if machine is not None else 0
        self._handles[number] = Handle(node, machine, starts, bool(flags & SYNCED_WRITES))
        return number

    def _handle(self, fh):
        handle = self._handles[fh]
        machine = handle.machine
        if machine is not None and (not machine.is_on or machine.starts != handle.starts):
            raise OSError(errno.EIO, "the machine was off")
        return handle

    # Power

    def setxattr(self, path, name, value, options, position=0):
        machine = self._root.entries.get(path[1:])
        if machine is None or name != "user.power":
            raise OSError(errno.ENOTSUP, name)
        match value.decode().split():
            case ["write", "back"]:
                for node in walk(machine):
                    node.sync()
            case ["off"]:
                machine.is_on = False
            case ["on", *seed]:
                machine.lose(random.Random(seed[0]) if seed else None)
                machine.starts += 1
                machine.is_on = True
            case _:
                raise OSError(errno.EINVAL, name)
        return 0

    def getxattr(self, path, name, position=0):
        machine = self._root.entries.get(path[1:])
        if machine is None or name not in {"user.unsynced", "user.syncs"}:
            raise OSError(errno.ENODATA, name)
        if name == "user.syncs":
            return str(machine.syncs).encode()
        files = (node for node in walk(machine) if isinstance(node, File))
        unsynced = (len(data or b"") for file in files for _, data in file.pending)
        return str(sum(unsynced)).encode()

    # Syncing

    def _sync(self, handle):
        handle.node.sync()
        handle.machine.syncs += 1
        if self._commits_folders:
            for node in walk(handle.machine):
                if isinstance(node, Folder):
                    node.sync()

    def fsync(self, path, datasync, fh):
        self._sync(self._handle(fh))
        return 0

    fsyncdir = fsync

    # Reading

    def getattr(self, path, fh=None):
        if fh is not None and fh in self._handles:
            node = self._handle(fh).node
        elif path.count("/") == 1 and path != "/":
            node = self._root.entries.get(path[1:])  # a machine, even one that is off
            if node is None:
                raise OSError(errno.ENOENT, path)
        else:
            node = self._find(path)
        kind, size = (
            (stat.S_IFDIR, BLOCK) if isinstance(node, Folder) else (stat.S_IFREG, len(node.data))
        )
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), node.changed)
        return {
            "st_mode": kind | node.mode, "st_nlink": 1, "st_size": size, "st_ino": node.inode,
            "st_blocks": -(-size // 512), "st_uid": os.getuid(), "st_gid": os.getgid(), **times,
        }  # fmt: skip

    def opendir(self, path):
        return self._open(path, self._find(path), 0)

    def readdir(self, path, fh):
        return [".", "..", *self._handle(fh).node.entries]

    def open(self, path, flags):
        node = self._find(path)
        if flags & os.O_TRUNC:
            node.change(0, None)
        return self._open(path, node, flags)

    def read(self, path, size, offset, fh):
        return bytes(self._handle(fh).node.data[offset : offset + size])

    def release(self, path, fh):
        self._handles.pop(fh, None)
        return 0

    releasedir = release

    def flush(self, path, fh):
        return 0  # closing a file syncs nothing

    def statfs(self, path):
        free = dict.fromkeys(("f_blocks", "f_bfree", "f_bavail"), FREE_BLOCKS)
        return {"f_bsize": BLOCK, "f_frsize": BLOCK, "f_namemax": 255, **free}

    # Changes

    def create(self, path, mode, flags):
        folder, name = self._parent(path)
        if self._machine(path) is None:
            raise OSError(errno.EPERM, "a file needs a machine")
        node = File(stat.S_IMODE(mode))
        folder.change(name, node)
        return self._open(path, node, flags)

    def write(self, path, data, offset, fh):
        handle = self._handle(fh)
        handle.node.change(offset, bytes(data))
        if handle.syncs_writes:
            self._sync(handle)
        return len(data)

    def truncate(self, path, length, fh=None):
        node = self._handle(fh).node if fh in self._handles else self._find(path)
        node.change(length, None)
        return 0

    def mkdir(self, path, mode):
        folder, name = self._parent(path)
        if folder is self._root:
            folder.change(name, Machine(stat.S_IMODE(mode)))
        else:
            folder.change(name, Folder(stat.S_IMODE(mode)))
        return 0

    def rmdir(self, path):
        if self._find(path).entries:
            raise OSError(errno.ENOTEMPTY, path)
        return self.unlink(path)

    def unlink(self, path):
        folder, name = self._parent(path)
        folder.change(name, None)
        return 0

    def rename(self, old, new):
        node = self._find(old)
        source, old_name = self._parent(old)
        target, new_name = self._parent(new)
        replaced = target.entries.get(new_name)
        if isinstance(replaced, Folder) and replaced.entries:
            raise OSError(errno.ENOTEMPTY, new)
        source.change(old_name, None)
        target.change(new_name, node)
        return 0

    def chmod(self, path, mode):
        self._find(path).mode = stat.S_IMODE(mode)
        return 0

    def chown(self, path, uid, gid):
        return 0

    def utimens(self, path, times=None):
        self._find(path).changed = times[1] if times else time.time_ns()
        return 0


def main(mountpoint, model):
    def unmount_at_end():
        sys.stdin.buffer.read()
        os.execvp("fusermount3", ["fusermount3", "-u", "-z", mountpoint])

    threading.Thread(target=unmount_at_end, daemon=True).start()
    mfusepy.FUSE(
        Disk(model), mountpoint, foreground=True, nothreads=True, hard_remove=True,
        attr_timeout=0, entry_timeout=0, negative_timeout=0, direct_io=True, fsname="power",
    )  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
