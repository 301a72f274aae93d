"""What a process of several prints: the first one everything, the others nothing."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from lmsmith.core.errors import PeerLost

FIRST_SECONDS = 3.0
"""Time that the first process has to say what ends all: torchrun stops them when one has ended."""


def is_silent() -> bool:
    """Whether this process was started by torchrun and is not the first."""
    return int(os.environ.get("RANK", "0")) > 0


def leaves_it_unsaid(error: BaseException) -> bool:
    """Whether another process says what ended this one; its message is kept for that one.

    torchrun, and `training.launch`, read it in the file that they name.
    """
    lost = isinstance(error, PeerLost) and bool(os.environ.get("LMSMITH_LAUNCHED"))
    if not (is_silent() or lost):
        return False
    if is_silent() and not isinstance(error, PeerLost):
        time.sleep(FIRST_SECONDS)
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        about = {"message": str(error), "extraInfo": {"timestamp": str(int(time.time()))}}
        with contextlib.suppress(OSError):
            Path(path).write_text(json.dumps({"message": about}), encoding="utf-8")
    return True
