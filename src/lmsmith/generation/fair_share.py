"""Fair shares of a scheduler: who goes next, and whose reply makes room.

Requests have an owner (their salt) and a group (their HTTP request). Owners share the rows and the
pages of the cache equally, as far as they want them, and so do the groups of one owner (max-min
fairness). The measure is the larger one of both shares, of rows and of pages (dominant resource
fairness, Ghodsi et al. 2011). Whoever is alone may use everything. When another owner comes,
replies of whoever has more than a fair share go back to the queue. They go on later from what they
have drawn.

Requests without a group, which the server never makes, are neither reordered nor put back.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from lmsmith.generation.requests import Request, RunningSequence, TokenLogProb

Item = TypeVar("Item")
Key = tuple[str, str]
"""Owner and group."""

QUANTUM = 128
"""Tokens after which a reply makes room for an owner who has none in progress."""


@dataclass(eq=False)
class Prefill:
    """Tokens of a request to be read: its prompt, and a forced reply.

    Several forced replies to one prompt are prefills of their own once the prompt is read. So is a
    reply that was put back into the queue: its tokens are read again, and it goes on.
    """

    number: int
    request: Request
    tokens: list[int]
    max_tokens: int  # of each reply
    row: int = -1  # of the cache, once it is admitted
    done: int = 0  # tokens that the row holds
    granted: int = 0  # replies that begin when the prompt is read; 0 before it is admitted
    log_probs: list[TokenLogProb] = field(default_factory=list)  # of the prompt
    sequences: list[RunningSequence] = field(default_factory=list)  # once the prompt is read

    @property
    def key(self) -> Key:
        return self.request.salt, self.request.group

    @property
    def samples(self) -> int:
        return self.granted or len(self.sequences) or self.request.settings.samples

    @property
    def goes_on(self) -> bool:
        """Whether it is a reply that was put back."""
        return bool(self.sequences) and not self.request.forced

    @property
    def prompt(self) -> Sequence[int]:
        """Tokens that the cache may hold already."""
        return self.tokens if self.goes_on else self.request.prompt

    @property
    def fewest_rows(self) -> int:
        """Rows without which it is not admitted; the other samples of a group may wait."""
        return 1 if self.may_split else self.samples

    @property
    def may_split(self) -> bool:
        return bool(self.request.group) and not self.request.forced


class WaitingQueue:
    """Requests that wait: those of one owner and group in the order in which they came."""

    def __init__(self) -> None:
        self._queues: dict[Key, deque[Prefill]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __iter__(self) -> Iterator[Prefill]:
        return (each for queue in self._queues.values() for each in queue)

    def __contains__(self, prefill: Prefill) -> bool:
        return prefill in self._queues.get(prefill.key, ())

    @property
    def keys(self) -> Iterable[Key]:
        return self._queues.keys()

    def append(self, prefill: Prefill) -> None:
        self._queues.setdefault(prefill.key, deque()).append(prefill)

    def put_back(self, prefill: Prefill) -> None:
        """Let a reply that has begun wait, before what came later."""
        self._queues.setdefault(prefill.key, deque()).appendleft(prefill)

    def remove(self, prefill: Prefill) -> None:
        self._queues[prefill.key].remove(prefill)
        self._drop_empty(prefill.key)

    def remove_request(self, number: int) -> None:
        for key in list(self._queues):
            if any(each.number == number for each in self._queues[key]):
                kept = (each for each in self._queues[key] if each.number != number)
                self._queues[key] = deque(kept)
                self._drop_empty(key)

    def _drop_empty(self, key: Key) -> None:
        if not self._queues[key]:
            del self._queues[key]

    def in_turn(self, usage: Callable[[], Usage]) -> Iterator[Prefill]:
        """The next request again and again, as `usage` is then; a group whose first request was not
        taken is passed over. Requests without a group come one after another."""
        passed = set[Key]()
        while keys := [key for key in self._queues if key not in passed]:
            now, queues = usage(), self._queues
            key = min(
                keys, key=lambda key: (now.owner(key[0]), now.group(key), queues[key][0].number)
            )
            for each in list(queues[key]) if not key[1] else [queues[key][0]]:
                yield each
                if each in self and key[1]:
                    passed.add(key)
            if not key[1]:
                passed.add(key)


class Usage:
    """Shares of the rows and of the pages, 0 to 1, by owner and group."""

    def __init__(self, max_rows: int, max_pages: int) -> None:
        self._max_rows, self._max_pages = max_rows, max_pages
        self._groups: dict[Key, tuple[int, int]] = {}
        self._owners: dict[str, tuple[int, int]] = {}

    def add(self, key: Key, rows: int, pages: int) -> None:
        before = self._groups.get(key, (0, 0))
        self._groups[key] = before[0] + rows, before[1] + pages
        before = self._owners.get(key[0], (0, 0))
        self._owners[key[0]] = before[0] + rows, before[1] + pages

    @property
    def keys(self) -> Iterable[Key]:
        return self._groups.keys()

    def unit(self, pages: int) -> float:
        """What one more reply takes."""
        return self._share(1, pages)

    def owner(self, owner: str) -> float:
        return self._share(*self._owners.get(owner, (0, 0)))

    def group(self, key: Key) -> float:
        return self._share(*self._groups.get(key, (0, 0)))

    def _share(self, rows: int, pages: int) -> float:
        return max(rows / self._max_rows, pages / self._max_pages)


def to_put_back(
    first: Prefill,
    running: Sequence[RunningSequence],
    waiting: Iterable[Key],
    usage: Usage,
    pages: Callable[[RunningSequence], int],
) -> RunningSequence | None:
    """The running reply that makes room for a waiting request; None if none has to.

    Args:
        first: waits.
        running: replies in progress.
        waiting: owners and groups that wait.
        usage: of all in progress.
        pages: maximum number of pages of a reply.
    """
    if not first.request.group:
        return None
    others = [each for each in running if each.source.group and each.key != first.key]
    keys, me = {*waiting, *usage.keys}, first.key[0]
    strangers = [each for each in others if each.key[0] != me]
    owner, group = usage.owner, usage.group

    def most_used(each: RunningSequence) -> tuple[float, float, int]:
        """Order of giving up: the largest share first, then the fewest tokens to read again."""
        return owner(each.key[0]), group(each.key), -len(each.tokens)

    def exceeds(each: RunningSequence, used: float, fair: float, mine: float) -> bool:
        """Whether shares are more equal after it has made room."""
        unit = usage.unit(pages(each))
        return used > fair and used - unit >= mine + unit - 1e-9

    fair, mine = 1 / len({owner for owner, _ in keys}), owner(me)
    over = [each for each in strangers if exceeds(each, owner(each.key[0]), fair, mine)]
    if not over:
        fair = mine / sum(owner == me for owner, _ in keys)
        own = (each for each in others if each.key[0] == me)
        over = [each for each in own if exceeds(each, group(each.key), fair, group(first.key))]
    if over:
        return max(over, key=most_used)
    long_ones = [each for each in strangers if each.since_admitted >= QUANTUM]
    if mine > 0 or not long_ones:
        return None
    return max(long_ones, key=lambda each: each.since_admitted)


def owners_in_turn(items: Iterable[Item], owner: Callable[[Item], str]) -> list[Item]:
    """The first item of each owner, then each owner's second one, and so on."""
    seen = Counter[str]()
    ranked: list[tuple[int, Item]] = []
    for item in items:
        ranked.append((seen[owner(item)], item))
        seen[owner(item)] += 1
    return [item for _, item in sorted(ranked, key=lambda each: each[0])]
