"""Chat templates from outside, rendered so that it stays known which text is a message's."""

from __future__ import annotations

import bisect
import functools
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.core.worker import Worker
from lmsmith.tokenizers.control_tokens import secret_text

SECONDS = 10.0
"""Longest time for one conversation."""

OUT_OF_MEMORY = "needs more memory than a template may"

MOST_CHARACTERS = 1 << 18
"""Most characters of a rendered conversation, besides four times its messages."""

_MOST_COMPARED = 1 << 28
"""Characters in which a template's texts are looked for."""

_OPEN, _CLOSE, _NUMBERS = "\U0010fff0", "\U0010fff1", 0x100000
"""Private characters, which templates do not look for: a mark's kind, and message 0."""

_FIX = "use the model's own template, or change this one (`chat.json` or `chat_template.jinja`)"


class Endless(UserError):
    """A template did not end in time, or used up its process's memory."""


@dataclass(frozen=True)
class Span:
    """Where a piece of a message's content stands in a rendered conversation."""

    message: int
    start: int
    end: int


@dataclass(frozen=True)
class Rendering:
    """A conversation as a template writes it.

    Attributes:
        spans: of the messages' contents, in order; all other text is the template's. None where
            the template rewrites contents, so that it cannot be known.
        controls: (start, end) of each control token that the template wrote.
        keeps_spaces: whether it writes the spaces that a content begins with.
    """

    text: str
    spans: list[Span] | None
    controls: list[tuple[int, int]]
    keeps_spaces: bool = True

    def until(self, end: int) -> Rendering:
        """Its first ``end`` characters."""
        inside = [(first, last) for first, last in self.controls if last <= end]
        return Rendering(self.text[:end], None, inside, self.keeps_spaces)

    def replies(self, messages: Sequence[Mapping[str, str]], stops: Collection[str]) -> list[Span]:
        """Where the assistant's messages stand: each with its content and what ends the turn.

        Args:
            stops: names of the control tokens that end a turn; spaces before one are written too.

        Raises:
            UserError: the template rewrites contents, so that it cannot be known.
        """
        numbers = [n for n, message in enumerate(messages) if message["role"] == "assistant"]
        if not numbers:
            return []
        if self.spans is None:
            raise UserError(
                "the model's chat template rewrites messages, so that it cannot be known which "
                "tokens are the assistant's",
                "change the template (`jinja` in chat.json), or train another model",
            )
        ends = {start: end for start, end in self.controls if self.text[start:end] in stops}
        found = []
        for number in numbers:
            spans = [span for span in self.spans if span.message == number]
            if not spans:  # the template left the message out
                continue
            content = messages[number]["content"]
            content = content.rstrip() if self.keeps_spaces else content.strip()
            start, end = self._with_unmarked(content, spans[0].start, spans[-1].end)
            found.append(Span(number, start, ends.get(self.after_spaces(end), end)))
        return found

    def after_spaces(self, place: int) -> int:
        """The place of the first character from ``place`` on that is no white space."""
        return len(self.text) - len(self.text[place:].lstrip())

    def _with_unmarked(self, content: str, start: int, end: int) -> tuple[int, int]:
        """The place of all of a content, of which the marked part begins and ends here."""
        if start == end:
            return start, end
        before, marked, after = content.partition(self.text[start:end])
        if marked and before and self.text[:start].endswith(before):
            start -= len(before)
        if marked and after and self.text.startswith(after, end):
            end += len(after)
        return start, end


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja program that writes a conversation.

    Attributes:
        variables: what it is given besides the messages: ``bos_token``, ``eos_token`` and others.
    """

    source: str
    variables: Mapping[str, str]

    def __hash__(self) -> int:
        return hash(self.source)

    def render(
        self, messages: Sequence[Mapping[str, str]], *, ask: bool, controls: Iterable[str]
    ) -> Rendering:
        """Write the conversation twice: plainly, and with secret marks around the contents.

        Where the two are equal but for the marks, every character's origin is known, and a
        control token counts as one only outside the contents. Where a template changes contents
        in a way that the marks disturb (``content[:5]``), the plain text is used if no content
        spells a control token, or makes one together with the template's text; else it is refused.

        Args:
            ask: end with what opens the assistant's reply.
            controls: names of the control tokens.

        Raises:
            UserError: the template fails, is too slow, too large, reaches outside or refuses the
                conversation; or contents spell control tokens and cannot be told from the
                template's text.
        """
        names = _names(tuple(controls))
        marks = _Marks(_unmarked(names, self.source))
        marked = [
            dict(message) | {"content": marks.around(number, message["content"])}
            for number, message in enumerate(messages)
        ]
        plain_text, marked_text = _render(
            self.source, [self._context(messages, ask), self._context(marked, ask)]
        )
        text, spans = marks.read(marked_text)
        if text == plain_text and spans is not None:
            found = [
                (start, end)
                for start, end in names.places(text)
                if not any(span.start < end and start < span.end for span in spans)
            ]
            return Rendering(text, spans, found, _keeps_spaces(self))
        found = names.places(plain_text)
        in_plain = [plain_text[start:end] for start, end in found]
        in_marked = [marked_text[start:end] for start, end in names.places(marked_text)]
        if in_plain != in_marked or any(names.places(each["content"]) for each in messages):
            raise UserError(
                "a message spells a control token, and the model's chat template rewrites "
                "messages, so that the two cannot be told apart",
                "take it out of the message, or change the template",
            )
        return Rendering(plain_text, None, found)

    def _context(self, messages: Sequence[Mapping[str, str]], ask: bool) -> dict[str, Any]:
        messages = [dict(message) for message in messages]
        asked = {"messages": messages, "add_generation_prompt": ask}
        return {**self.variables, "tools": None, "documents": None, **asked}


class _Names:
    """Texts that are looked for in others: the leftmost first, and the longest there."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = frozenset(names) - {""}
        lengths: dict[str, set[int]] = {}
        for name in self.names:
            lengths.setdefault(name[0], set()).add(len(name))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        self._first = re.compile(f"[{''.join(map(re.escape, lengths))}]") if lengths else None

    def places(self, text: str) -> list[tuple[int, int]]:
        """Where they stand in a text, start and end."""
        found: list[tuple[int, int]] = []
        at = 0
        while self._first and (match := self._first.search(text, at)):
            start = match.start()
            lengths = self._lengths[match.group()]
            named = (text[start : start + length] for length in lengths)
            name = next((each for each in named if each in self.names), "")
            at = start + (len(name) or 1)
            if name:
                found.append((start, at))
        return found


@functools.lru_cache(maxsize=16)
def _names(names: tuple[str, ...]) -> _Names:
    return _Names(names)


@functools.lru_cache(maxsize=16)
def _unmarked(controls: _Names, source: str) -> _Names:
    """Texts of a template that stay outside of marks: no part of a control token can be in one.

    A control token may lie in one, with more text around it, or across its edge.
    """
    constants = [text for text in _constants(source) if text.strip()]
    together = "\U0010ffff".join(controls.names)
    if len(constants) * len(together) > _MOST_COMPARED:
        raise UserError(
            f"the chat template has {len(constants):,} texts, too many for a tokenizer whose "
            f"control tokens have {len(together):,} characters",
            _FIX,
        )
    forwards = sorted(controls.names)
    backwards = sorted(name[::-1] for name in controls.names)
    longest = max(map(len, forwards), default=0)

    def begins_one(text: str, names: list[str]) -> bool:
        """Whether a name begins as the text ends."""
        for length in range(1, min(len(text), longest) + 1):
            place = bisect.bisect_left(names, end := text[-length:])
            if place < len(names) and names[place].startswith(end):
                return True
        return False

    return _Names(
        text
        for text in constants
        if not (text in together or controls.places(text))
        and not begins_one(text, forwards)
        and not begins_one(text[::-1], backwards)
    )


class _Marks:
    """Secret marks around contents that the usual template does not notice.

    The outer spaces of a content stay outside, so that templates may trim; so do texts that the
    template splits by (``</think>``), unless they could be a part of a control token.
    """

    def __init__(self, bare: _Names) -> None:
        self._key = secret_text()
        self._marks = re.compile(f"{self._key}([{_OPEN}{_CLOSE}])(.)", re.DOTALL)
        self._bare = bare

    def around(self, number: int, content: str) -> str:
        """The content of message ``number`` with its marks."""
        core = content.strip()
        if not core:
            return self._mark(_OPEN, number) + self._mark(_CLOSE, number) + content
        before, _, after = content.partition(core)
        pieces, at = [before], 0
        for start, end in self._bare.places(core):
            pieces += [self._wrapped(number, core[at:start]), core[start:end]]
            at = end
        return "".join([*pieces, self._wrapped(number, core[at:]), after])

    def _wrapped(self, number: int, text: str) -> str:
        """``text`` between marks, spaces at its ends outside; no marks if that is all."""
        core = text.strip()
        if not core:
            return text
        before, _, after = text.partition(core)
        return f"{before}{self._mark(_OPEN, number)}{core}{self._mark(_CLOSE, number)}{after}"

    def _mark(self, kind: str, number: int) -> str:
        return self._key + kind + chr(_NUMBERS + number)

    def read(self, marked: str) -> tuple[str, list[Span] | None]:
        """The text without marks, and the spans; None for these if marks are lost or crossed."""
        pieces: list[str] = []
        spans: list[Span] = []
        length, at, whole = 0, 0, True
        opened: tuple[int, int] | None = None
        for match in self._marks.finditer(marked):
            pieces.append(marked[at : match.start()])
            length += len(pieces[-1])
            at = match.end()
            number = ord(match[2]) - _NUMBERS
            if match[1] == _OPEN:
                whole &= opened is None
                opened = (number, length)
            else:
                whole &= opened is not None and opened[0] == number
                if opened is not None:
                    spans.append(Span(number, opened[1], length))
                opened = None
        pieces.append(marked[at:])
        return "".join(pieces), spans if whole and opened is None else None


@functools.lru_cache(maxsize=16)
def _constants(source: str) -> tuple[str, ...]:
    return tuple(_ask({"template": source, "contexts": []})["constants"])


@functools.lru_cache(maxsize=16)
def _keeps_spaces(template: ChatTemplate) -> bool:
    """Whether the template writes the spaces that a reply begins with."""
    reply = "\n \n a"
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": reply}]
    try:
        return reply in _render(template.source, [template._context(talk, False)])[0]
    except UserError:
        return True


def _render(source: str, contexts: list[dict[str, Any]]) -> list[str]:
    given = max(sum(len(each["content"]) for each in context["messages"]) for context in contexts)
    request = {"template": source, "contexts": contexts, "most": MOST_CHARACTERS + 4 * given}
    texts: list[str] = _ask(request)["texts"]
    return texts


WORKER = Worker(Path(__file__).with_name("template_worker.py"), "jinja2")


def _ask(request: Mapping[str, Any]) -> dict[str, Any]:
    """The worker's answer; a `UserError` if it is an error, or none came in time."""
    line = WORKER.ask(json.dumps(request).encode() + b"\n", SECONDS)
    if not line:
        raise Endless(
            f"the chat template did not end within {SECONDS:g} seconds, or was stopped", _FIX
        )
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        kind = Endless if answer["error"] == OUT_OF_MEMORY else UserError  # as slow as one
        raise kind(f"the chat template {answer['error']}", _FIX)
    return answer
