"""The inside of `sandbox`: takes every liberty from its own process, then runs the program.

It is run as a script by a bare interpreter, so it imports nothing of lmsmith.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from pathlib import Path

NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER_MODE = 38, 22, 2
ALLOW, REFUSE, NOT_THERE, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
"""Seccomp's answers: go on, EPERM, ENOSYS, end the process."""

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

# Numbers of the system calls that are refused, on x86-64 and arm64.
REFUSED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "fork": (57, None),
    "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "kill": (62, 129),
    "tkill": (200, 130), "tgkill": (234, 131), "pidfd_send_signal": (424, 424),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "setrlimit": (160, 164), "prlimit64": (302, 261), "unshare": (272, 97), "setns": (308, 268),
    "mount": (165, 40), "bpf": (321, 280), "perf_event_open": (298, 241), "keyctl": (250, 219),
    "setpriority": (141, 140),
    # Landlock leaves a file's owner, rights and times to whoever owns it.
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}  # fmt: skip
UNKNOWN: dict[str, tuple[int | None, int | None]] = {
    "io_uring_setup": (425, 425), "clone3": (435, 435),
}  # fmt: skip
"""As on an older system: the C library then makes threads by clone, which is looked at."""
CLONE = (56, 220)
CAPSET = (126, 91)
CAPABILITIES_VERSION = 0x20080522
CLONE_THREAD = 0x00010000

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
EXECUTE, WRITE_FILE, READ_FILE, READ_FOLDER = 1, 2, 4, 8
ALL_OF_FIRST_VERSION = (1 << 13) - 1
REFER, TRUNCATE = 1 << 13, 1 << 14
O_PATH = 0o10000000


def main() -> None:
    answer = int(sys.argv[1])
    order = json.loads(sys.stdin.buffer.read())
    said = b""
    try:
        hold_back(order["folder"], order["limits"])
    except Exception as error:
        os.write(answer, f"{type(error).__name__}: {error}".encode()[:1000])
        os._exit(3)
    try:
        exec(compile(order["program"], "program", "exec"), {"__name__": "__main__"})
        said = order["word"].encode()
    except BaseException as error:
        said = f"{type(error).__name__}: {error}".encode("utf-8", "replace")[:1000]
    os.write(answer, said)
    os._exit(0)


def hold_back(folder: str, limits: dict[str, int]) -> None:
    """Set every limit of this process; there is no way back."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in AUDIT_ARCH:
        raise OSError(f"no seccomp filter for {sys.platform} on {machine}")
    libc = ctypes.CDLL(None, use_errno=True)
    for kind, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, limits["open_files"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
    ):
        resource.setrlimit(kind, (most, most))
    seconds = limits["cpu_seconds"]
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    _check(libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
    close_files(libc, folder)
    number = CAPSET[0 if machine == "x86_64" else 1]
    nothing = struct.pack("6I", 0, 0, 0, 0, 0, 0)
    header = struct.pack("Ii", CAPABILITIES_VERSION, 0)
    _check(libc.syscall(number, header, nothing), "giving up root's powers")
    refuse_calls(libc, machine)


def close_files(libc: ctypes.CDLL, folder: str) -> None:
    """Landlock: the interpreter's own files to read, the folder to write, and no others."""
    version = libc.syscall(LANDLOCK_CREATE, None, 0, 1)
    _check(version, "landlock")
    rights = ALL_OF_FIRST_VERSION
    rights |= REFER if version >= 2 else 0
    rights |= TRUNCATE if version >= 3 else 0
    handled = struct.pack("Q", rights)
    rules = libc.syscall(LANDLOCK_CREATE, handled, len(handled), 0)
    _check(rules, "landlock's rules")
    reading = EXECUTE | READ_FILE | READ_FOLDER
    readable = {sys.base_prefix, sys.prefix, "/usr", "/lib", "/lib64"}
    _allow(libc, rules, folder, rights)
    for path in sorted(readable):
        if Path(path).is_dir():
            _allow(libc, rules, path, reading)
    for path in ("/dev/null", "/dev/urandom", "/dev/zero"):
        if Path(path).exists():
            _allow(libc, rules, path, READ_FILE | WRITE_FILE)
    _check(libc.syscall(LANDLOCK_RESTRICT, rules, 0), "landlock")
    os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> None:
    descriptor = os.open(path, O_PATH | os.O_CLOEXEC)
    beneath = struct.pack("=Qi", rights, descriptor)
    _check(libc.syscall(LANDLOCK_ADD, rules, 1, beneath, 0), f"landlock at {path}")
    os.close(descriptor)


def refuse_calls(libc: ctypes.CDLL, machine: str) -> None:
    """Seccomp: a filter in the kernel's own small language, looked through at every call."""
    column = 0 if machine == "x86_64" else 1
    load_word, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    number_at, arch_at, first_argument_at = 0, 4, 16
    lines = [
        (load_word, 0, 0, arch_at),
        (equal, 1, 0, AUDIT_ARCH[machine]),
        (end, 0, 0, KILL),
        (load_word, 0, 0, number_at),
        (at_least, 0, 1, 0x40000000),  # the x32 calls are the same ones under other numbers
        (end, 0, 0, KILL),
    ]
    for answer, table in ((REFUSE, REFUSED), (NOT_THERE, UNKNOWN)):
        for numbers in table.values():
            number = numbers[column]
            if number is not None:
                lines += [(equal, 0, 1, number), (end, 0, 0, answer)]
    lines += [
        (equal, 0, 4, CLONE[column]),
        (load_word, 0, 0, first_argument_at),
        (any_bit, 1, 0, CLONE_THREAD),
        (end, 0, 0, REFUSE),
        (end, 0, 0, ALLOW),
        (end, 0, 0, ALLOW),
    ]
    program = b"".join(struct.pack("HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(program)
    filter_of = struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(buffer))
    _check(libc.prctl(SET_SECCOMP, FILTER_MODE, filter_of, 0, 0), "seccomp")


def _check(result: int, what: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    main()
