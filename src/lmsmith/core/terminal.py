"""Text of models and people on a terminal, whose control sequences would take the terminal over.

An escape sequence may write to the clipboard, rename the window, or hide and forge lines; marks of
direction show words in another order than they stand (Boucher and Anderson 2021). They are shown as
U+FFFD.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.console import Console
    from rich.segment import Segment

SHOWN = "\ufffd"

_C0 = [code for code in (*range(32), 127) if chr(code) not in "\n\t"]
_C1 = range(128, 160)
_DIRECTION = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))  # embeddings, overrides, isolates

_ALL = dict.fromkeys([*_C0, *_C1, *_DIRECTION], SHOWN)
_WITHOUT_RETURN = {code: shown for code, shown in _ALL.items() if code != 13}
_IN_PIPES = {code: shown for code, shown in _WITHOUT_RETURN.items() if code < 128}
_IN_JSON = {code: f"\\u{code:04x}" for code in (127, *_C1, *_DIRECTION)}


def visible(text: str) -> str:
    """The text with each control character but line ends and tabs, and each mark of direction,
    replaced."""
    return text.translate(_ALL)


def visible_json(text: str) -> str:
    """JSON with the same characters escaped, which loses nothing."""
    return text.translate(_IN_JSON)


class VisibleStream:
    """A stream to which a command prints: control characters are replaced, as by `visible`.

    Carriage returns, by which a line is written again, pass. Into files and pipes all characters
    from U+0080 on pass, too.
    """

    def __init__(self, stream: TextIO) -> None:
        self.unchecked = stream

    def write(self, text: str) -> int:
        table = _WITHOUT_RETURN if self.unchecked.isatty() else _IN_PIPES
        self.unchecked.write(text.translate(table))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unchecked, name)


def checked(stream: TextIO) -> TextIO:
    """A stream that replaces control characters."""
    if isinstance(stream, VisibleStream):
        return stream
    return cast(TextIO, VisibleStream(stream))


def visible_console(stream: TextIO, **options: Any) -> Console:
    """rich's console, whose own control sequences pass, and nobody else's."""
    from rich.console import Console
    from rich.segment import Segment

    class VisibleConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # the command ends as by any other output, and not with 1

        def _render_buffer(self, buffer: Iterable[Segment]) -> str:
            return super()._render_buffer(
                each if each.control else Segment(visible(each.text), each.style) for each in buffer
            )

    return VisibleConsole(file=getattr(stream, "unchecked", stream), **options)
