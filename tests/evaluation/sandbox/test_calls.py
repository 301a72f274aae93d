"""The filter lets through the calls on its list, on both machines, and no others."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lmsmith.evaluation.sandbox import calls
from lmsmith.evaluation.sandbox.calls import ALLOW, KILL, NOT_THERE, REFUSE

MACHINES = ["x86_64", "aarch64"]
HARMFUL = [
    "kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal",
    "pidfd_open", "pidfd_getfd", "ptrace", "process_vm_readv", "process_vm_writev",
    "process_madvise", "process_mrelease", "kcmp", "setpriority", "sched_setaffinity",
    "sched_setscheduler", "sched_setattr", "ioprio_set", "migrate_pages", "move_pages",
    "timer_create", "mq_open", "mq_notify", "shmget", "shmat", "semget", "msgget", "msgsnd",
    "add_key", "request_key", "keyctl", "memfd_create", "memfd_secret", "userfaultfd", "bpf",
    "perf_event_open", "io_uring_setup", "io_uring_enter", "mount", "umount2", "pivot_root",
    "chroot", "unshare", "setns", "move_mount", "open_tree", "fsopen", "clone3", "fork", "vfork",
    "execve", "execveat", "inotify_init1", "inotify_add_watch", "fanotify_init",
    "fanotify_mark", "name_to_handle_at", "open_by_handle_at", "socket", "socketpair", "connect",
    "bind", "sendmsg", "personality", "modify_ldt", "ioperm", "iopl", "kexec_load",
    "init_module", "finit_module", "delete_module", "reboot", "swapon", "syslog", "acct",
    "quotactl", "settimeofday", "clock_settime", "adjtimex", "sethostname", "setuid",
    "setresuid", "capset", "seccomp", "setsid", "setpgid", "setrlimit", "chmod", "fchmod",
    "fchmodat", "fchmodat2", "chown", "fchownat", "utimensat", "setxattr", "link", "linkat",
    "symlink", "symlinkat", "mknod", "mknodat", "creat", "truncate", "flock", "sync", "syncfs",
    "fsync", "fallocate", "splice", "vmsplice", "tee", "copy_file_range", "sendfile",
    "landlock_create_ruleset", "mlock", "mlockall", "mbind", "set_mempolicy",
    "remap_file_pages", "vhangup", "lookup_dcookie", "signalfd4", "waitid", "arch_prctl",
]  # fmt: skip


def answer(
    machine: str, number: int, *arguments: int, own_root: bool = True, abi: int | None = None
) -> int:
    """What the filter says, by the rules of bpf(4), for its few instructions."""
    words = {0: number, 4: calls.ARCHITECTURES[machine] if abi is None else abi}
    for place, argument in enumerate([*arguments, *[0] * 6][:6]):
        words[16 + 8 * place] = argument & 0xFFFFFFFF
        words[20 + 8 * place] = argument >> 32 & 0xFFFFFFFF
    lines = calls.program(machine, own_root)
    at = held = 0
    while True:
        code, true, false, constant = lines[at]
        at += 1
        match code:
            case calls.LOAD_WORD:
                held = words[constant]
            case calls.AND:
                held &= constant
            case calls.END:
                return constant
            case calls.EQUAL:
                at += true if held == constant else false
            case calls.AT_LEAST:
                at += true if held >= constant else false
            case calls.ANY_BIT:
                at += true if held & constant else false
            case _:
                raise AssertionError(code)


def numbers(machine: str) -> dict[str, int]:
    """The kernel's own numbers, from its headers."""
    header = {
        "x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
        "aarch64": "/usr/include/asm-generic/unistd.h",
    }[machine]
    if not Path(header).exists():
        pytest.skip(f"no {header}")
    found = re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text())
    result = {name: int(number) for name, number in found}
    if "fstatat" in result:
        result["newfstatat"] = result["fstatat"]
    return result


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numbers_are_the_kernels(machine: str) -> None:
    known = numbers(machine)
    for table in (calls.FREE, calls.BY_PATH, calls.ABSENT, calls.LOOKED_AT):
        for name, both in table.items():
            number = both[MACHINES.index(machine)]
            assert number is None or number == known[name], name
            assert (number is None) == (name not in known), name


@pytest.mark.parametrize("machine", MACHINES)
def test_nothing_else_gets_through(machine: str) -> None:
    column = MACHINES.index(machine)
    listed = {both[column] for both in calls.FREE.values()}
    by_path = {both[column] for both in calls.BY_PATH.values()}
    looked_at = {both[column] for both in calls.LOOKED_AT.values()}
    for number in range(1024):
        said = {answer(machine, number, *[word] * 6) for word in (0, 1, 0xFFFFFFFF, 1 << 32)}
        if number in listed | by_path:
            assert said == {ALLOW}
        elif number not in looked_at:
            assert said in ({REFUSE}, {NOT_THERE})
        if number in by_path:
            assert answer(machine, number, own_root=False) == REFUSE


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_call_is_refused(name: str) -> None:
    for machine in MACHINES:
        known = numbers(machine)
        if name in known:
            assert answer(machine, known[name]) in (REFUSE, NOT_THERE)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("openat", (0, 0, 0o0), ALLOW),
        ("openat", (0, 0, 0o1101), ALLOW),
        ("openat", (0, 0, 0o1000), REFUSE),  # truncated by a reader
        ("openat", (0, 0, 0o3), REFUSE),  # neither read nor written
        ("openat", (0, 0, 0o1003), REFUSE),
        ("openat", (0, 0, 0o10000000), REFUSE),  # a mere path
        ("openat", (0, 0, 0o20000), REFUSE),
        ("fcntl", (0, 3), ALLOW),
        ("fcntl", (0, 4, 0o4000), ALLOW),
        ("fcntl", (0, 4, 0o20000), REFUSE),  # O_ASYNC
        ("fcntl", (0, 8, 1), REFUSE),  # F_SETOWN
        ("fcntl", (0, 10, 9), REFUSE),  # F_SETSIG
        ("fcntl", (0, 15, 1), REFUSE),  # F_SETOWN_EX
        ("fcntl", (0, 1024, 1), REFUSE),  # F_SETLEASE
        ("fcntl", (0, 1026, 1), REFUSE),  # F_NOTIFY
        ("fcntl", (0, 1031, 1 << 20), REFUSE),  # F_SETPIPE_SZ
        ("fcntl", (0, 6), REFUSE),  # F_SETLK
        ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0, 0x5452), REFUSE),  # FIOASYNC
        ("ioctl", (0, 0x8901), REFUSE),  # FIOSETOWN
        ("ioctl", (0, 0x5412), REFUSE),  # TIOCSTI
        ("close_range", (3, 9, 0), ALLOW),
        ("close_range", (3, 9, 4), ALLOW),
        ("close_range", (3, 9, 2), REFUSE),  # a table of open files for each thread
        ("close_range", (3, 9, 6), REFUSE),
        ("clone", (0x003D0F00,), ALLOW),
        ("clone", (17,), REFUSE),
        ("clone", (0x003D0F00 | 0x10000000,), REFUSE),  # a new user namespace
        ("clone", (0x003D0F00 | 0x8000,), REFUSE),  # a sibling of the judge
        ("prctl", (15,), ALLOW),
        ("prctl", (1, 9), REFUSE),  # a signal when the parent ends
        ("prctl", (4, 1), REFUSE),  # may be traced
        ("prctl", (22, 2), REFUSE),  # a filter of its own
        ("prlimit64", (0, 7, 0, 1), ALLOW),
        ("prlimit64", (0, 7, 1, 0), REFUSE),
        ("prlimit64", (0, 7, 1 << 32, 0), REFUSE),
        ("prlimit64", (1, 7, 0, 1), REFUSE),
        ("sched_getaffinity", (0,), ALLOW),
        ("sched_getaffinity", (1,), REFUSE),
        ("clock_gettime", (1,), ALLOW),
        ("clock_gettime", (0xFFFFFFF2,), REFUSE),  # another process's time
    ],
)
def test_arguments_decide(machine: str, name: str, arguments: tuple[int, ...], said: int) -> None:
    number = calls.LOOKED_AT[name][MACHINES.index(machine)]
    assert number is not None
    assert answer(machine, number, *arguments) == said


@pytest.mark.parametrize("machine", MACHINES)
def test_other_binary_interfaces_end_the_process(machine: str) -> None:
    for abi in (0x40000003, 0x40000028, 0xC00000B7 if machine == "x86_64" else 0xC000003E):
        assert answer(machine, 39, abi=abi) == KILL
    assert answer(machine, 0x40000000 + 39) == KILL
