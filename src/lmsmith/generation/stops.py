"""Stop texts, which may lie across the borders of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


class StopScanner:
    """Text that comes in pieces, up to the first of the stop texts.

    What may be the beginning of a stop text is held back until it is known not to be.

    Attributes:
        stopped: whether a stop text has come; nothing after it is taken.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The text that is known to come before any stop text."""
        if self.stopped:
            return ""
        self._held += piece
        ends = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            return self._held[: min(ends)]
        keep = max((overlap(self._held, stop) for stop in self._stops), default=0)
        known = self._held[: len(self._held) - keep]
        self._held = self._held[len(self._held) - keep :]
        return known

    def flush(self) -> str:
        """What was held back, once no more text will come."""
        rest, self._held = ("" if self.stopped else self._held), ""
        return rest


def overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` are the beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)


def until_stop(pieces: Iterator[str], stops: Sequence[str]) -> Iterator[str]:
    """The pieces up to the first of the stop texts."""
    scanner = StopScanner(stops)
    for piece in pieces:
        yield scanner.push(piece)
        if scanner.stopped:
            return
    yield scanner.flush()
