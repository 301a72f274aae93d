"""The walls around a process: resource limits, namespaces, Landlock, no powers of root.

Each is built by the process for itself, and cannot be taken down again.
"""

# Pathlib takes longer to import than the walls to build.
# ruff: noqa: PTH102, PTH103, PTH110, PTH112, PTH119, PTH120, PTH123

from __future__ import annotations

import ctypes
import os
import struct
import sys

from lmsmith.evaluation.sandbox.calls import NO_NEW_PRIVILEGES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICES = ("/dev/null", "/dev/urandom", "/dev/zero")
TIME_ZONES = "/usr/share/zoneinfo"
DENIED = ("/etc", "/home", "/proc", "/root", "/sys", "/var")
"""Empty folders that nobody may look into, so that an error says so."""
WORK = "/program"
"""The program's folder where it has a file tree of its own; no interpreter is installed there."""

# sys/mount.h, linux/sched.h
NEW_USER, NEW_MOUNTS, NEW_PIDS, NEW_IPC, NEW_NET = (
    0x10000000, 0x00020000, 0x20000000, 0x08000000, 0x40000000,
)  # fmt: skip
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_RECURSIVE, MS_PRIVATE = (
    2, 4, 8, 4096, 16384, 1 << 18,
)  # fmt: skip
DETACH, HERE, RECURSIVE, READ_ONLY = 2, -100, 0x8000, 1
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
CAPSET = {"x86_64": 126, "aarch64": 91}
MOUNT_SETATTR = 442
CAPABILITIES_VERSION = 0x20080522
DEATH_SIGNAL, KILLED = 1, 9
ROOT_ENTRIES = 512
"""Most entries of the sandbox's own root: folders and files that others are bound to."""

# linux/landlock.h
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
WRITE_FILE, READ_FILE, READ_FOLDER = 2, 4, 8
ALL_OF_FIRST_VERSION = (1 << 13) - 1
REFER, TRUNCATE, DEVICE_IOCTL = 1 << 13, 1 << 14, 1 << 15
ABSTRACT_SOCKETS = 1
TCP, ABSTRACT_SOCKETS_AND_SIGNALS = 3, 3


def readable_folders() -> list[str]:
    """Folders of the interpreter's library and of those it loads; none lies within another."""
    own = sys.base_prefix
    found: list[str] = []
    for path in (
        "/usr/lib", "/usr/lib64", "/lib", "/lib64", f"{own}/lib", f"{own}/{sys.platlibdir}",
        TIME_ZONES,
    ):  # fmt: skip
        if os.path.isdir(path) and not any(f"{path}/".startswith(f"{up}/") for up in found):
            found.append(path)
    return found


def installed_packages(folder: str) -> Iterator[tuple[str, bool]]:
    """The folder's entries that matter, and whether each is a folder of installed packages.

    Packages are kept from programs: some hold a benchmark's solutions. What matters otherwise are
    Python's own modules, in folders named after it, and shared libraries.
    """
    inside = os.path.basename(folder).startswith("python")
    for entry in os.scandir(folder):
        if entry.name in ("site-packages", "dist-packages"):
            yield entry.path, True
        elif entry.name.startswith("python") and entry.is_dir():
            yield from installed_packages(entry.path)
        elif inside or ".so" in entry.name or entry.name.endswith("-linux-gnu"):
            yield entry.path, False


def hidden_folders() -> list[str]:
    """Folders of installed packages within the `readable_folders`."""
    found = (entry for folder in readable_folders() for entry in installed_packages(folder))
    return [path for path, hidden in found if hidden]


def die_with_parent(libc: ctypes.CDLL) -> None:
    """Have the kernel end this process when its parent ends, however that ends."""
    _check(libc.prctl(DEATH_SIGNAL, KILLED, 0, 0, 0), "death signal")


def limit_resources(limits: dict[str, int], threads: bool) -> None:
    """Limit this process.

    Args:
        limits: by name, from `programs.Limits`.
        threads: limit those of this user too, who has a namespace of their own.
    """
    import resource  # not there on Windows, where the rest may be imported

    # A process that is the first of its namespace heeds no soft limit's signal, so both are one.
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        *([(resource.RLIMIT_NPROC, limits["threads"])] if threads else []),
    ):
        resource.setrlimit(kind, (most, most))


def enter_namespaces(libc: ctypes.CDLL, folder: str, limits: dict[str, int]) -> None:
    """Leave for namespaces of this process's own, with a root of their own built on ``folder``.

    The root holds the interpreter's files to read and an empty folder in memory to write, of
    ``folder_bytes`` and ``folder_entries``. Its next child is the first of new process numbers.

    Raises:
        OSError: the system does not allow it.
    """
    machine, user, group = os.uname().machine, os.geteuid(), os.getegid()
    new = NEW_USER | NEW_MOUNTS | NEW_PIDS | NEW_IPC | NEW_NET
    _check(libc.unshare(new), "namespaces")
    for file, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{user} {user} 1"),
        ("gid_map", f"{group} {group} 1"),
    ):
        with open(f"/proc/self/{file}", "w") as out:
            out.write(text)
    _mount(libc, None, "/", None, MS_RECURSIVE | MS_PRIVATE)
    tree = f"size=64k,nr_inodes={ROOT_ENTRIES},mode=755"
    _mount(libc, "tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, tree)
    for path in (*readable_folders(), *DEVICES):
        _bind(libc, path, folder + path)
    os.mkdir(folder + WORK)
    for path in DENIED:
        if not os.path.exists(folder + path):
            os.mkdir(folder + path, 0)
    for path in hidden_folders():
        _bind(libc, folder + WORK, folder + path)
    os.chdir(folder)
    _check(libc.syscall(PIVOT_ROOT[machine], b".", b"."), "a root of its own")
    _check(libc.umount2(b".", DETACH), "leaving the old root")
    os.chdir("/")
    read_only = struct.pack("4Q", READ_ONLY, 0, 0, 0)
    changed = libc.syscall(MOUNT_SETATTR, HERE, b"/", RECURSIVE, read_only, len(read_only))
    _check(changed, "a root to read alone")
    most = f"size={limits['folder_bytes']},nr_inodes={limits['folder_entries']},mode=700"
    _mount(libc, "tmpfs", WORK, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, most)
    os.chdir(WORK)
    os.environ.update(HOME=WORK, TMPDIR=WORK)


def _bind(libc: ctypes.CDLL, path: str, to: str) -> None:
    if os.path.isdir(path):
        os.makedirs(to, exist_ok=True)
    elif os.path.exists(path):
        os.makedirs(os.path.dirname(to), exist_ok=True)
        open(to, "w").close()
    else:
        return
    _mount(libc, path, to, None, MS_BIND | MS_RECURSIVE)


def _mount(
    libc: ctypes.CDLL, what: str | None, at: str, kind: str | None, flags: int, options: str = ""
) -> None:
    source, form = (text.encode() if text else None for text in (what, kind))
    done = libc.mount(source, at.encode(), form, ctypes.c_ulong(flags), options.encode())
    _check(done, f"mounting {at}")


def landlock_version(libc: ctypes.CDLL) -> int:
    """Version of the kernel's Landlock; 0 where there is none."""
    return max(0, int(libc.syscall(LANDLOCK_CREATE, None, 0, 1)))


def file_rules(
    libc: ctypes.CDLL, version: int, own_root: bool, *, signals: bool, writable: str = ""
) -> int | None:
    """Landlock's rules: the interpreter's own files to read, a folder to write, and no others.

    They also refuse TCP (version 4), devices' controls (5), and signals and abstract sockets to
    processes outside (6).

    Args:
        version: the kernel's; 0: there are no rules.
        own_root: installed packages are hidden already.
        signals: let it signal processes outside; the one by which the kernel ends a child with its
            parent is such a signal.
        writable: the folder to write; empty: none.

    Returns:
        A descriptor for `close_files`.

    Raises:
        OSError: the kernel refuses.
    """
    if not version:
        return None
    rights = ALL_OF_FIRST_VERSION
    truncate = TRUNCATE if version >= 3 else 0
    rights |= (REFER if version >= 2 else 0) | truncate | (DEVICE_IOCTL if version >= 5 else 0)
    handled = struct.pack("Q", rights)
    handled += struct.pack("Q", TCP) if version >= 4 else b""
    scoped = ABSTRACT_SOCKETS if signals else ABSTRACT_SOCKETS_AND_SIGNALS
    handled += struct.pack("Q", scoped) if version >= 6 else b""
    rules = libc.syscall(LANDLOCK_CREATE, handled, len(handled), 0)
    _check(rules, "landlock's rules")
    for folder in readable_folders():
        _allow(libc, rules, folder, READ_FOLDER | (READ_FILE if own_root else 0))
        for path, hidden in () if own_root else installed_packages(folder):
            if not hidden:
                _allow(libc, rules, path, READ_FILE)
    _allow(libc, rules, TIME_ZONES, READ_FILE | READ_FOLDER)
    for path in DEVICES:
        _allow(libc, rules, path, READ_FILE | WRITE_FILE | truncate)
    if writable:
        _allow(libc, rules, writable, rights)
    return int(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    beneath = struct.pack("=Qi", rights, descriptor)
    _check(libc.syscall(LANDLOCK_ADD, rules, 1, beneath, 0), f"landlock at {path}")
    os.close(descriptor)


def close_files(libc: ctypes.CDLL, rules: int | None) -> None:
    """Hold this process to the rules."""
    if rules is None:
        return
    _check(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
    _check(libc.syscall(LANDLOCK_RESTRICT, rules, 0), "landlock")
    os.close(rules)


def give_up_powers(libc: ctypes.CDLL) -> None:
    """Drop every capability, those of a namespace's root too."""
    header = struct.pack("Ii", CAPABILITIES_VERSION, 0)
    nothing = struct.pack("6I", 0, 0, 0, 0, 0, 0)
    _check(libc.syscall(CAPSET[os.uname().machine], header, nothing), "giving up root's powers")


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
