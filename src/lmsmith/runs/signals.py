"""Ctrl-C and SIGTERM as a flag that a loop reads between two steps."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from types import FrameType

from lmsmith.core.errors import Interrupted

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_requested: int | None = None
_depth = 0


def stop_requested() -> int | None:
    """The signal that asked this process to stop, or None."""
    return _requested


def stop_if_requested() -> None:
    """Raise ``Interrupted`` if a signal asked to stop; call it once everything is saved."""
    if _requested is not None:
        raise Interrupted(_requested)


class StopSignal:
    """While entered, the first SIGINT or SIGTERM only sets the flag; a second one interrupts.

    May be entered more than once; the outermost installs and restores the handlers. Outside
    the main thread, where Python allows no handlers, it does nothing.

    Raises:
        Interrupted: at the outermost's end, if a signal came after the last look at the flag: what
            the program does next is not begun.
    """

    def __enter__(self) -> StopSignal:
        global _depth, _requested
        _depth += 1
        self._previous: dict[int, object] = {}
        if _depth == 1:
            _requested = None
            if threading.current_thread() is threading.main_thread():
                for number in _SIGNALS:
                    self._previous[number] = signal.signal(number, _remember)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        global _depth, _requested
        _depth -= 1
        for number, handler in self._previous.items():
            with contextlib.suppress(ValueError, TypeError):
                signal.signal(number, handler)  # type: ignore[arg-type]
        if _depth == 0:
            missed, _requested = _requested, None
            if missed is not None and kind is None:
                raise Interrupted(missed)


def _remember(number: int, _frame: FrameType | None) -> None:
    global _requested
    # torchrun passes on a signal that a terminal has sent to its processes already.
    if _requested is not None and "TORCHELASTIC_RUN_ID" not in os.environ:
        raise KeyboardInterrupt
    _requested = number
