"""The demo's conversations: what `chitchat-dataset` ships, read without running its code."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json
from lmsmith.corpus.rows import Conversation

PACKAGE = "chitchat-dataset"
_INSTALL = f"pip install --no-deps {PACKAGE}==0.9.0"


def dataset_path() -> Path:
    """Where the installed package keeps its data.

    Raises:
        UserError: it is not installed, or its file is gone.
    """
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise UserError(f"package:{PACKAGE}: not installed", _INSTALL) from error
    for file in files:
        if file.name == "dataset.json":
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    raise UserError(
        f"package:{PACKAGE}: installed without its dataset.json",
        _INSTALL + " --force-reinstall",
    )


def read_chitchat(path: Path | None = None) -> Iterator[Conversation]:
    """Two people's conversations: whoever writes first is the user, the other the assistant.

    What one person sends in a row is one message of several lines.

    Args:
        path: the package's dataset.json; found by itself when not given. It holds an object of
            id → ``{"messages": [[{"text", "sender", …}, …], …], …}``, a list a run of one sender.
    """
    path = path or dataset_path()
    data = read_json(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected an object of conversations", _INSTALL)
    for name, conversation in data.items():
        try:
            sent = [
                (str(message["sender"]), str(message["text"]))
                for run in conversation["messages"]
                for message in run
            ]
        except (KeyError, TypeError) as error:
            raise UserError(
                f"{path}, conversation {name}: not as version 0.9.0 writes it", _INSTALL
            ) from error
        if sent:
            yield Conversation(str(name), _as_messages(sent))


def _as_messages(sent: list[tuple[str, str]]) -> list[dict[str, str]]:
    """(sender, text) in order of time → messages, a sender's run joined by line ends."""
    first_sender = sent[0][0]
    messages: list[dict[str, str]] = []
    for sender, text in sent:
        role = "user" if sender == first_sender else "assistant"
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += "\n" + text
        else:
            messages.append({"role": role, "content": text})
    return messages
