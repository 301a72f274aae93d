"""The rows that users bring and stages pass on: conversations, rankings, documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, read_jsonl
from lmsmith.corpus.messages import name_of_type, validate_messages

LONG_TEXT_CHARACTERS = 16_384
"""A .txt file longer than this is read as several documents, so that a split can divide it."""


@dataclass(frozen=True)
class Conversation:
    """Messages in order, as `validate_messages` accepts them, and what they are known by."""

    id: str
    messages: list[dict[str, str]]

    def row(self) -> dict[str, object]:
        """The row of a JSONL file that `read_conversations` reads back."""
        return {"messages": self.messages, "id": self.id}

    def turns(self) -> list[dict[str, str]]:
        """The messages without the system's."""
        return [message for message in self.messages if message["role"] != "system"]


@dataclass(frozen=True)
class Ranking:
    """K responses to one prompt in a labeler's order.

    Attributes:
        prompt: messages, the last of which is the user's.
        responses: K >= 2 texts.
        ranks: one for each response, 1 is best, equal numbers are ties.
    """

    id: str
    prompt: list[dict[str, str]]
    responses: list[str]
    ranks: list[int]
    labeler: str = ""
    source: str = ""

    def row(self) -> dict[str, object]:
        """The row of a JSONL file that `read_rankings` reads back."""
        return {
            "prompt": self.prompt,
            "responses": self.responses,
            "ranks": self.ranks,
            "labeler": self.labeler,
            "source": self.source,
            "id": self.id,
        }


@dataclass(frozen=True)
class Document:
    """Plain text for pretraining; `source` names the part of the mixture it belongs to."""

    id: str
    text: str
    source: str

    def row(self) -> dict[str, object]:
        """The row of a JSONL file that `read_documents` reads back."""
        return {"text": self.text, "id": self.id, "source": self.source}


def read_conversations(path: Path) -> Iterator[Conversation]:
    """Conversations of a JSONL file, checked. A row without an id is known by a hash of itself.

    Raises:
        UserError: naming the file and the line.
    """
    for line, row in read_jsonl(path):
        where = f"{path}, line {line}"
        if "messages" not in row:
            raise _missing("messages", row, where)
        messages = validate_messages(row["messages"], where)
        yield Conversation(_id_of(row, where) or fingerprint(messages), messages)


def read_documents(path: Path, source: str | None = None) -> Iterator[Document]:
    """Documents of a JSONL file (``text``, and ``id`` and ``source`` where given) or a .txt file.

    A .txt file is one document; a long one is several, cut at blank lines.

    Args:
        source: overrules what the rows say, and names the file where they say nothing.

    Raises:
        UserError: naming the file and the line.
    """
    if path.suffix == ".txt":
        pieces = _cut_at_blank_lines(_read_text(path))
        for number, piece in enumerate(pieces):
            yield Document(f"{path.name}#{number}", piece, source or path.name)
        return
    for line, row in read_jsonl(path):
        where = f"{path}, line {line}"
        if "text" not in row:
            raise _missing("text", row, where)
        text = _text_of(row, "text", where)
        name = source or _text_of(row, "source", where, default=path.name)
        yield Document(_id_of(row, where) or fingerprint(text), text, name)


def read_rankings(path: Path) -> Iterator[Ranking]:
    """Rankings of a JSONL file; a row of ``chosen`` and ``rejected`` is a ranking of two.

    ``chosen`` and ``rejected`` are either texts that answer ``prompt`` (messages, or the text of
    one user's message), or whole conversations (messages, or the text of the hh-rlhf data,
    ``"\\n\\nHuman: …\\n\\nAssistant: …"``) that differ in their last message.

    Raises:
        UserError: naming the file and the line.
    """
    for line, row in read_jsonl(path):
        where = f"{path}, line {line}"
        if "chosen" in row or "rejected" in row:
            prompt, responses, ranks = _read_pair(row, where)
        else:
            prompt, responses, ranks = _read_ranks(row, where)
        labeler = _text_of(row, "labeler", where, default="")
        source = _text_of(row, "source", where, default=path.name)
        name = _id_of(row, where) or fingerprint([prompt, responses, ranks])
        yield Ranking(name, prompt, responses, ranks, labeler, source)


def _read_ranks(
    row: Mapping[str, object], where: str
) -> tuple[list[dict[str, str]], list[str], list[int]]:
    for key in ("prompt", "responses", "ranks"):
        if key not in row:
            raise _missing(key, row, where)
    prompt = _prompt_of(row["prompt"], where)
    responses, ranks = row["responses"], row["ranks"]
    if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
        raise UserError(f"{where}: 'responses' must be a list of texts")
    if len(responses) < 2:
        raise UserError(f"{where}: 'responses' must hold at least two, not {len(responses)}")
    if not isinstance(ranks, list) or not all(type(rank) is int and rank >= 1 for rank in ranks):
        raise UserError(f"{where}: 'ranks' must be a list of whole numbers from 1 (the best)")
    if len(ranks) != len(responses):
        raise UserError(f"{where}: {len(responses)} responses but {len(ranks)} ranks")
    return prompt, responses, ranks


def _read_pair(
    row: Mapping[str, object], where: str
) -> tuple[list[dict[str, str]], list[str], list[int]]:
    for key in ("chosen", "rejected"):
        if key not in row:
            raise _missing(key, row, where)
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, str) and isinstance(rejected, str):
        if row.get("prompt") is not None:
            return _prompt_of(row["prompt"], where), [chosen, rejected], [1, 2]
        chosen, rejected = _from_transcript(chosen, where), _from_transcript(rejected, where)
    better = validate_messages(chosen, f"{where}, 'chosen'")
    worse = validate_messages(rejected, f"{where}, 'rejected'")
    if {better[-1]["role"], worse[-1]["role"]} != {"assistant"}:
        raise UserError(f"{where}: 'chosen' and 'rejected' must end with the assistant's message")
    if len(better) == 1 and len(worse) == 1 and row.get("prompt") is not None:
        prompt = _prompt_of(row["prompt"], where)  # the messages are the replies alone
    elif better[:-1] == worse[:-1]:
        prompt = _prompt_of(better[:-1], where)
    else:
        raise UserError(f"{where}: 'chosen' and 'rejected' differ before their last message")
    return prompt, [better[-1]["content"], worse[-1]["content"]], [1, 2]


def _prompt_of(value: object, where: str) -> list[dict[str, str]]:
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    prompt = validate_messages(value, f"{where}, 'prompt'")
    if prompt[-1]["role"] != "user":
        raise UserError(
            f"{where}: the prompt ends with the {prompt[-1]['role']}'s message",
            "a prompt must end with the user's message, which the responses answer",
        )
    return prompt


def _from_transcript(text: str, where: str) -> list[dict[str, str]]:
    """Messages of ``"\\n\\nHuman: …\\n\\nAssistant: …"`` (Bai et al. 2022, hh-rlhf)."""
    names = {"\n\nHuman:": "user", "\n\nAssistant:": "assistant"}
    messages: list[dict[str, str]] = []
    rest = "\n\n" + text.lstrip("\n")
    while rest:
        name = next((name for name in names if rest.startswith(name)), None)
        if name is None:
            raise UserError(
                f"{where}: there is no 'prompt', and 'chosen' and 'rejected' are not conversations",
                "give 'prompt', or messages, or texts that start with 'Human:'",
            )
        rest = rest[len(name) :]
        end = min((at for name in names if (at := rest.find(name)) >= 0), default=len(rest))
        content, rest = rest[:end].strip(), rest[end:]
        if messages and messages[-1]["role"] == names[name]:
            messages[-1]["content"] += "\n" + content
        else:
            messages.append({"role": names[name], "content": content})
    return messages


def _missing(key: str, row: Mapping[str, object], where: str) -> UserError:
    found = ", ".join(map(repr, row)) or "none"
    return UserError(f"{where}: no {key!r} in this row; its keys are: {found}")


def _text_of(row: Mapping[str, object], key: str, where: str, default: str | None = None) -> str:
    value = row.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise UserError(f"{where}: {key!r} must be text, not {name_of_type(value)}")
    return value


def _id_of(row: Mapping[str, object], where: str) -> str:
    value = row.get("id")
    return str(value) if type(value) is int else _text_of(row, "id", where, default="")


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file", "Check the path.") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}, line {line}: not UTF-8 text", "Save the file as UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _cut_at_blank_lines(text: str) -> Iterator[str]:
    """Pieces that join to `text`, each the fewest whole paragraphs of `LONG_TEXT_CHARACTERS`."""
    text = text.replace("\r\n", "\n")
    start = 0
    while len(text) - start > LONG_TEXT_CHARACTERS:
        cut = text.find("\n\n", start + LONG_TEXT_CHARACTERS)
        if cut < 0:
            break
        yield text[start : cut + 2]
        start = cut + 2
    yield text[start:]
