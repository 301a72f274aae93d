"""Whether the Hugging Face hub may be asked, and its libraries kept from asking it."""

from __future__ import annotations

import contextlib
import http.client
import os
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Any of these set to 1, ON, YES or TRUE: the hub is not asked."""

PATIENCE = 5.0
"""Seconds that the hub has to answer at all, before its caches alone are read."""

_SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")


def said_offline() -> str:
    """The variable by which the user keeps the hub from being asked; empty if there is none."""
    said = ("1", "ON", "YES", "TRUE")
    names = (name for name in OFFLINE_VARIABLES if os.environ.get(name, "").upper() in said)
    return next(names, "")


def why_offline(path: str = "") -> str:
    """Why the hub is not asked: the user says so, or it does not answer; empty if it does.

    Args:
        path: of the page that it is asked for, without the first slash.
    """
    if variable := said_offline():
        return f"{variable} is set"
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    failures = [f"{endpoint} does not answer within {PATIENCE:g} seconds"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{endpoint}/{path}", timeout=PATIENCE):
                failures.clear()
        except urllib.error.HTTPError as error:  # it answers: what it says, its library tells
            error.close()
            if error.code < 500:
                failures.clear()
            else:
                failures[0] = f"{endpoint} answers {error.code}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLError):  # other libraries know other certificates
                failures.clear()
            else:
                failures[0] = f"{endpoint} cannot be reached ({reason})"

    # A name's look-up knows no time limit: the thread is left behind where it takes longer.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return failures[0] if failures else ""


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
