"""Start the processes of a run on this machine with torchrun's agent, and say what ended them.

Over several machines torchrun starts them itself: ``torchrun … -m lmsmith run RECIPE``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lmsmith.core.errors import Interrupted, PeerLost, UserError

LAUNCHED = "LMSMITH_LAUNCHED"
"""Set in the processes: what ends them is said by the one that started them."""

SHUTDOWN_SECONDS = 30
"""Seconds that the others have to end, once one of them has."""

_STOPS = (signal.SIGINT, signal.SIGTERM)
"""Signals by which torchrun's agent stops the others."""

_CAUSES: Mapping[int, str] = {
    signal.SIGKILL: "; the system kills it where memory runs out",
    signal.SIGBUS: "; a file that it read was cut off, or a disk is full",
}

_BY_A_SIGNAL = {128 + signal.SIGINT: signal.SIGINT, 128 + signal.SIGTERM: signal.SIGTERM}


def launch(words: Sequence[str], processes: int) -> None:
    """Run ``lmsmith WORDS`` in so many processes, and wait for them.

    What the first prints on standard error is shown; its standard output is not.

    Raises:
        UserError: the first has shown a user's mistake; this one has no text of its own.
        PeerLost: one was ended from outside, or does not answer.
        Interrupted: a signal asked to stop, and the first has saved.
    """
    with tempfile.TemporaryDirectory() as folder, _environment({LAUNCHED: "1"}), _quiet_agent():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=str(uuid.uuid4()),
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            max_restarts=0,
            local_addr="127.0.0.1",
            logs_specs=DefaultLogsSpecs(log_dir=folder, redirects=Std.OUT),
            shutdown_timeout=SHUTDOWN_SECONDS,
        )
        try:
            elastic_launch(config, sys.executable)("-m", "lmsmith", *words)
        except ChildFailedError as error:
            raise _reason(error.failures, processes) from error
        except SignalException as error:
            raise Interrupted(int(error.sigval)) from error


def _reason(failures: Mapping[int, Any], processes: int) -> Exception:
    """What ended the run, of all that the processes' ends say."""
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    ended = [rank for rank, code in codes.items() if code < 0 and -code not in _STOPS]
    if ended or all(code < 0 for code in codes.values()):
        rank = (ended or sorted(codes))[0]
        number = -codes[rank]
        return PeerLost(
            f"process {rank} of {processes} was ended by signal {number} "
            f"({signal.Signals(number).name}{_CAUSES.get(number, '')})"
        )
    for code in codes.values():
        if code in _BY_A_SIGNAL:
            return Interrupted(_BY_A_SIGNAL[code])
    if codes.get(0) == UserError.exit_code:
        return AlreadyShown()
    said = {rank: text for rank, each in failures.items() if (text := _message(each))}
    lost = [text for rank, text in said.items() if codes[rank] == PeerLost.exit_code]
    own = [
        f"process {rank} of {processes}: {text}"
        for rank, text in said.items()
        if codes[rank] != PeerLost.exit_code
    ]
    if own:
        return UserError(own[0])
    if lost:
        return PeerLost(lost[0])
    rank = min(codes)
    return PeerLost(f"process {rank} of {processes} ended with exit code {codes[rank]}")


def _message(failure: Any) -> str:
    """What a process wrote into its error file; empty if nothing."""
    found = (failure.error_file_data or {}).get("message", "")
    return str(found.get("message", "") if isinstance(found, dict) else found)


class AlreadyShown(UserError):
    """The first process has shown its message."""

    def __init__(self) -> None:
        super().__init__("")


@contextlib.contextmanager
def _environment(more: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet_agent() -> Iterator[None]:
    """The agent's logs, each with its own level, repeat in pages what `launch` says in a line."""
    name = "torch.distributed.elastic"
    names = [each for each in logging.root.manager.loggerDict if each.startswith(f"{name}.")]
    logs = [logging.getLogger(each) for each in (name, *names)]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
