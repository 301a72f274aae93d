"""Whether the Hugging Face hub may be asked, and its libraries kept from asking it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Any of these set to 1, ON, YES or TRUE: the hub is not asked."""

_SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def said_offline() -> str:
    """The variable by which the user keeps the hub from being asked; empty if there is none."""
    said = ("1", "ON", "YES", "TRUE")
    names = (name for name in OFFLINE_VARIABLES if os.environ.get(name, "").upper() in said)
    return next(names, "")


@contextlib.contextmanager
def caches_alone() -> Iterator[None]:
    """Inside, the hub's libraries read their caches and ask no network.

    Those that are imported already have read the environment, and are told by their own switches.
    """
    before = {name: os.environ.get(name) for name in _SWITCHES}
    os.environ.update(dict.fromkeys(_SWITCHES, "1"))
    loaded = [
        (sys.modules[name], switch, getattr(sys.modules[name], switch))
        for name in ("huggingface_hub.constants", "datasets.config")
        if name in sys.modules
        for switch in _SWITCHES
        if hasattr(sys.modules[name], switch)
    ]
    for module, switch, _ in loaded:
        setattr(module, switch, True)
    try:
        yield
    finally:
        for module, switch, value in loaded:
            setattr(module, switch, value)
        for name, text in before.items():
            os.environ.pop(name, None) if text is None else os.environ.update({name: text})
