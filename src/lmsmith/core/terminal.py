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
_DIRECTION = (  # marks, embeddings, overrides, isolates
    *(0x061C, 0x200E, 0x200F),
    *range(0x202A, 0x202F),
    *range(0x2066, 0x206A),
)
_LINE_ENDS = (0x2028, 0x2029)  # U+0085 is in C1

_ALL = dict.fromkeys([*_C0, *_C1, *_DIRECTION, *_LINE_ENDS], SHOWN)
_IN_PIPES = {code: shown for code, shown in _ALL.items() if code < 128}
_IN_LINES = {**_ALL, 9: " ", 10: SHOWN}
_IN_JSON = {code: f"\\u{code:04x}" for code in (127, *_C1, *_DIRECTION, *_LINE_ENDS)}


def visible(text: str) -> str:
    """The text with each control character but line ends and tabs, and each mark of direction,
    replaced."""
    return text.translate(_ALL)


def in_one_line(text: str) -> str:
    """As `visible`, for a name or a title: it ends no line, and so forges none."""
    return text.translate(_IN_LINES)


def visible_json(text: str) -> str:
    """JSON with the same characters escaped, which loses nothing."""
    return text.translate(_IN_JSON)


class VisibleStream:
    """A stream to which a command prints: control characters are replaced, as by `visible`.

    Into files and pipes all characters from U+0080 on pass.

    Args:
        rewrites: whether a carriage return at the beginning of what is written passes, by which
            progress bars write their line again.
    """

    def __init__(self, stream: TextIO, rewrites: bool = False) -> None:
        self.unchecked, self._rewrites = stream, rewrites

    def write(self, text: str) -> int:
        table = _ALL if self.unchecked.isatty() else _IN_PIPES
        begin = "\r" if self._rewrites and text.startswith("\r") else ""
        self.unchecked.write(begin + text[len(begin) :].translate(table))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unchecked, name)


def checked(stream: TextIO, rewrites: bool = False) -> TextIO:
    """A stream that replaces control characters, as `VisibleStream`."""
    if isinstance(stream, VisibleStream):
        return stream
    return cast(TextIO, VisibleStream(stream, rewrites))


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
