"""The system calls that a program may make: an allow-list by seccomp, on x86-64 and arm64.

A filter in the kernel's own small language looks at every call (seccomp(2), bpf(4)). Whatever
the list does not name is refused, so calls of later kernels are too. Calls under another ABI
(i386, x32, 32-bit ARM) end the process.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Sequence

Line = tuple[int, int, int, int]
"""One instruction: code, jump if true, jump if false, constant."""

NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER_MODE = 38, 22, 2
ALLOW, REFUSE, NOT_THERE, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
"""Seccomp's answers: go on, EPERM, ENOSYS, end the process."""

LOAD_WORD, EQUAL, AT_LEAST, ANY_BIT, AND, END = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
NUMBER_AT, ARCHITECTURE_AT = 0, 4
ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
FIRST_OF_X32 = 0x40000000
AFTER_GLIBC_KNEW = 449
"""Calls from this number on are answered as by an older kernel, so that libraries do without."""

# Numbers on x86-64 and arm64; None where a machine has no such call.
Table = dict[str, tuple[int | None, int | None]]
FREE: Table = {
    # files that are open, or that Landlock and the mounts allow
    "read": (0, 63), "write": (1, 64), "close": (3, 57),
    "stat": (4, None), "fstat": (5, 80), "lstat": (6, None), "newfstatat": (262, 79),
    "statx": (332, 291), "lseek": (8, 62), "pread64": (17, 67), "pwrite64": (18, 68),
    "readv": (19, 65), "writev": (20, 66), "dup": (32, 23), "dup2": (33, None),
    "dup3": (292, 24), "pipe": (22, None), "pipe2": (293, 59), "select": (23, None),
    "pselect6": (270, 72), "poll": (7, None), "ppoll": (271, 73), "epoll_create1": (291, 20),
    "epoll_ctl": (233, 21), "epoll_wait": (232, None), "epoll_pwait": (281, 22),
    "eventfd2": (290, 19), "getdents64": (217, 61), "getcwd": (79, 17), "mkdir": (83, None),
    "mkdirat": (258, 34), "rmdir": (84, None), "unlink": (87, None), "unlinkat": (263, 35),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276),
    "ftruncate": (77, 46), "umask": (95, 166),
    # its own memory and threads
    "mmap": (9, 222), "munmap": (11, 215), "mprotect": (10, 226), "mremap": (25, 216),
    "brk": (12, 214), "madvise": (28, 233), "futex": (202, 98), "set_robust_list": (273, 99),
    "rseq": (334, 293), "sched_yield": (24, 124), "exit": (60, 93), "exit_group": (231, 94),
    "wait4": (61, 260),
    # who and where it is
    "gettid": (186, 178), "getpid": (39, 172), "getppid": (110, 173), "getuid": (102, 174),
    "geteuid": (107, 175), "getgid": (104, 176), "getegid": (108, 177), "uname": (63, 160),
    "sysinfo": (99, 179), "getrlimit": (97, 163), "getrusage": (98, 165), "times": (100, 153),
    # signals that come to it, time, chance
    "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132), "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133), "pause": (34, None), "alarm": (37, None),
    "setitimer": (38, 103), "getitimer": (36, 102), "restart_syscall": (219, 128),
    "nanosleep": (35, 101), "gettimeofday": (96, 169), "time": (201, None),
    "getrandom": (318, 278),
}  # fmt: skip
BY_PATH: Table = {
    # Landlock does not look at these: only where nothing but the sandbox has a path.
    "chdir": (80, 49), "fchdir": (81, 50), "readlink": (89, None), "readlinkat": (267, 78),
    "access": (21, None), "faccessat": (269, 48), "statfs": (137, 43), "fstatfs": (138, 44),
}  # fmt: skip
ABSENT: Table = {
    # The C library then opens threads by clone, whose flags can be looked at.
    "clone3": (435, 435), "openat2": (437, 437), "faccessat2": (439, 439),
}  # fmt: skip
LOOKED_AT: Table = {
    "open": (2, None), "openat": (257, 56), "fcntl": (72, 25), "ioctl": (16, 29),
    "close_range": (436, 436), "clone": (56, 220), "prctl": (157, 167), "prlimit64": (302, 261),
    "sched_getaffinity": (204, 123), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
}  # fmt: skip

# The same numbers on both machines (asm-generic/fcntl.h, linux/sched.h and others).
ACCESS_MODE, O_TRUNC, O_ASYNC, O_PATH = 0o3, 0o1000, 0o20000, 0o10000000
F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_DUPFD_CLOEXEC = 0, 1, 2, 3, 4, 1030
TCGETS, FIONCLEX, FIOCLEX = 0x5401, 0x5450, 0x5451
PR_SET_NAME, PR_GET_NAME = 15, 16
CLOSE_ON_EXEC = 4
THREAD, DETACHED = 0x003D0F00, 0x00400000
"""The flags by which glibc makes a thread; musl adds the other."""
FIXED_CLOCKS = 12
"""Clocks from here on are those of devices and of other processes."""


def refuse_calls(libc: ctypes.CDLL, machine: str, own_root: bool) -> None:
    """Hold this process to the list; there is no way back.

    Args:
        machine: as `os.uname` names it, one of `ARCHITECTURES`.
        own_root: this process sees no file tree but the sandbox's own.

    Raises:
        OSError: the kernel takes no filter, or the machine is another.
    """
    if machine not in ARCHITECTURES:
        raise OSError(f"no seccomp filter for {machine}")
    lines = program(machine, own_root)
    buffer = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
    header = struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(buffer))
    for option in ((NO_NEW_PRIVILEGES, 1, 0, 0, 0), (SET_SECCOMP, FILTER_MODE, header, 0, 0)):
        if libc.prctl(*option) < 0:
            raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def program(machine: str, own_root: bool) -> list[Line]:
    """The filter's instructions."""
    column = 0 if machine == "x86_64" else 1
    lines: list[Line] = [
        (LOAD_WORD, 0, 0, ARCHITECTURE_AT),
        (EQUAL, 1, 0, ARCHITECTURES[machine]),
        (END, 0, 0, KILL),
        (LOAD_WORD, 0, 0, NUMBER_AT),
        (AT_LEAST, 0, 1, FIRST_OF_X32),
        (END, 0, 0, KILL),
    ]
    tables = [(ALLOW, FREE), (NOT_THERE, ABSENT)] + ([(ALLOW, BY_PATH)] if own_root else [])
    for answer, table in tables:
        for numbers in table.values():
            if (number := numbers[column]) is not None:
                lines += [(EQUAL, 0, 1, number), (END, 0, 0, answer)]
    for name, numbers in LOOKED_AT.items():
        if (number := numbers[column]) is not None:
            body = [*conditions()[name], (END, 0, 0, REFUSE)]
            lines += [(EQUAL, 0, len(body), number), *body]
    return [*lines, (AT_LEAST, 0, 1, AFTER_GLIBC_KNEW), (END, 0, 0, NOT_THERE), (END, 0, 0, REFUSE)]


def conditions() -> dict[str, list[Line]]:
    """Instructions that allow a call by its arguments; one that gets past them is refused."""
    return {
        "open": _opening(1),
        "openat": _opening(2),
        "fcntl": [
            # No O_ASYNC, F_SETOWN or F_SETSIG: by these the kernel signals any process.
            *_one_of(1, [F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC]),
            (EQUAL, 0, 3, F_SETFL),
            _argument(2),
            (ANY_BIT, 1, 0, O_ASYNC),
            (END, 0, 0, ALLOW),
        ],
        # Without a table of open files for each thread, which would have a limit of its own.
        "close_range": _one_of(2, [0, CLOSE_ON_EXEC]),
        "ioctl": _one_of(1, [TCGETS, FIONCLEX, FIOCLEX]),
        "clone": _one_of(0, [THREAD, THREAD | DETACHED]),
        "prctl": _one_of(0, [PR_SET_NAME, PR_GET_NAME]),
        # Reading its own limits, by a null pointer to new ones; setting any is refused.
        "prlimit64": [
            *_unless_zero(0, 5),
            *_unless_zero(2, 3),
            *_unless_zero(2, 1, high=True),
            (END, 0, 0, ALLOW),
        ],
        "sched_getaffinity": _one_of(0, [0]),
        "clock_gettime": _fixed_clock(),
        "clock_getres": _fixed_clock(),
        "clock_nanosleep": _fixed_clock(),
    }


def _argument(number: int, high: bool = False) -> Line:
    """Load an argument's lower or higher 32 bits; both machines are little-endian."""
    return (LOAD_WORD, 0, 0, 16 + 8 * number + 4 * high)


def _one_of(argument: int, values: Sequence[int]) -> list[Line]:
    lines = [_argument(argument)]
    for value in values:
        lines += [(EQUAL, 0, 1, value), (END, 0, 0, ALLOW)]
    return lines


def _unless_zero(argument: int, skip: int, high: bool = False) -> list[Line]:
    return [_argument(argument, high), (EQUAL, 0, skip, 0)]


def _fixed_clock() -> list[Line]:
    return [_argument(0), (AT_LEAST, 1, 0, FIXED_CLOCKS), (END, 0, 0, ALLOW)]


def _opening(flags: int) -> list[Line]:
    """Allow what Landlock looks at.

    It looks neither at a descriptor for a mere path, nor at one that neither reads nor writes
    (mode 3), nor, before Linux 6.2, at a truncation by a reader.
    """
    return [
        _argument(flags),
        (ANY_BIT, 5, 0, O_PATH | O_ASYNC),
        (AND, 0, 0, ACCESS_MODE | O_TRUNC),
        (EQUAL, 3, 0, O_TRUNC),
        (EQUAL, 2, 0, ACCESS_MODE),
        (EQUAL, 1, 0, ACCESS_MODE | O_TRUNC),
        (END, 0, 0, ALLOW),
    ]
