"""The prefix cache: keys and values of sequences in use, and of earlier ones.

A new prompt begins from the row with the longest common prefix: a conversation's last turn, what
the items of a task have in common, or a prompt that is being read or answered now.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from lmsmith.core.errors import UserError
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.kv_cache import PagedCache, pages_for
from lmsmith.generation.requests import CacheKey

SHORTEST = 16
"""Tokens below which reading them again is not worth the copy of a page."""

CachedPrefix = tuple[int, Sequence[int], int]
"""A row of the cache, tokens, and how many of them the row has read."""

NO_KEY: CacheKey = ("", "")


class PrefixCache:
    """A `PagedCache` with its rows in use and those of earlier sequences, of limited size.

    Args:
        model: its keys and values are held.
        cache_bytes: memory of the cache.
        rows: maximum number of rows in use.
        kept: maximum number of earlier sequences, the least recently used going first.
        page: tokens of a page.
        grows: whether memory is allocated as it is needed, and exceeded by a sequence that would
            never fit; else it is allocated at once and never exceeded.

    Raises:
        UserError: a cache that does not grow has no room for two pages.
    """

    def __init__(
        self,
        model: InferenceDecoder,
        cache_bytes: int,
        rows: int,
        kept: int,
        page: int,
        grows: bool,
    ) -> None:
        config = model.config
        page_bytes = config.cache_bytes_per_token(model.dtype.itemsize) * page
        windows = {config.window_of(layer) for layer in range(config.layers)}
        self.banded, self.page, self.grows = any(windows), page, grows
        self._kinds = len(windows)
        self.pages = cache_bytes // page_bytes
        if self.pages < 2 * self._kinds and not grows:
            raise UserError(
                f"a cache of {cache_bytes:,} bytes has no room for {2 * page} tokens",
                f"give it {2 * self._kinds * page_bytes:,} or more",
            )
        self._page_bytes = page_bytes / self._kinds
        self._most_kept, self._rows, self._model = kept, rows + kept + 1, model
        self._kept: OrderedDict[int, tuple[CacheKey, list[int]]] = OrderedDict()
        self._pinned: CachedPrefix | None = None
        self._keys: dict[int, CacheKey] = {}  # of rows in use and kept
        self.kv = self._new_kv(1 if grows else self.pages)

    def _new_kv(self, pages: int) -> PagedCache:
        model = self._model
        return PagedCache(model.config, self._rows, pages, model.dtype, self.page, model.device)

    @property
    def tokens(self) -> int:
        """Maximum number of tokens that all rows together hold."""
        return self.pages * self.page // self._kinds

    @property
    def used_bytes(self) -> int:
        """Earlier sequences included."""
        return int(self.kv.used_pages * self._page_bytes)

    @property
    def reuses(self) -> bool:
        """Whether a prompt may begin from an earlier one."""
        return bool(self._most_kept or self._pinned)

    def max_pages(self, done: int, length: int) -> int:
        """Maximum number of pages that a row with ``done`` tokens takes until it has ``length``.

        The page that it is in counts: where that is shared, it will be copied.
        """
        return (pages_for(length, self.page) - done // self.page) * self._kinds

    def reserve(self, pages: int) -> None:
        """Allocate so many pages at once while the cache is empty; growing copies it."""
        pages = max(1, min(pages, self.pages))
        if self.grows and not self.kv.used_pages and self.kv.pages < pages * self._kinds:
            self.kv = self._new_kv(pages)

    def open(
        self,
        prompt: Sequence[int],
        live: Iterable[CachedPrefix],
        pages: int,
        *,
        reuse: bool,
        key: CacheKey = NO_KEY,
        alone: bool = False,
    ) -> tuple[int, int]:
        """A row for a prompt, forked from the row with the longest common prefix.

        Args:
            prompt: to be read.
            live: rows in use that may be forked.
            pages: that must be free for an empty row.
            reuse: whether another row may be forked.
            key: rows of the same key alone may be forked, from this one too.
            alone: whether no other row is in use: a cache that grows then has room in any case.

        Returns:
            The row, and how many tokens of the prompt it holds already; row −1 if there is no
            room now.
        """
        found = self.longest(prompt, live, key) if reuse and self.reuses else None
        if found is not None:
            earlier, done = found
            if self._make_room(pages - done // self.page * self._kinds, but=earlier):
                if earlier in self._kept:
                    self._kept.move_to_end(earlier)
                row = self.fork(earlier, key)
                if done < self.kv.lengths[row]:
                    self.kv.truncate(row, done)
                return row, done
        if not self._make_room(pages) and not (alone and self.grows):
            return -1, 0
        row = self.kv.open()
        self._keys[row] = key
        return row, 0

    def longest(
        self, prompt: Sequence[int], live: Iterable[CachedPrefix], key: CacheKey
    ) -> tuple[int, int] | None:
        """The row of this key with the longest common prefix, and the prefix's length."""
        kept = ((row, tokens, len(tokens)) for row, (_, tokens) in self._kept.items())
        rows = (each for each in (*kept, *live) if self._keys[each[0]] == key)
        pinned = [] if self._pinned is None or key[1] else [self._pinned]  # the base read it
        return longest_prefix((*pinned, *rows), prompt, whole_rows=self.banded)

    def _make_room(self, pages: int, but: int | None = None) -> bool:
        while self.kv.used_pages + pages > self.pages:
            if not self.forget_oldest(but):
                return False
        return True

    def fork(self, row: int, key: CacheKey = NO_KEY) -> int:
        """A row with the same past."""
        made = self.kv.fork(row)
        self._keys[made] = self._keys.get(row, key)
        return made

    def close(self, row: int) -> None:
        """Free a row."""
        del self._keys[row]
        self.kv.close(row)

    def pin(self, row: int, tokens: Sequence[int]) -> None:
        """Keep a row for every prompt to come that begins so."""
        self._pinned = (row, list(tokens), len(tokens))

    def unpin(self) -> None:
        if self._pinned is not None:
            self.close(self._pinned[0])
            self._pinned = None

    def release(self, row: int, tokens: Sequence[int], *, keep: bool) -> None:
        """End the use of a row, and perhaps keep what it has read for prompts that begin so.

        A row whose tokens another one of its key begins with is not kept.
        """
        read, key = list(tokens[: self.kv.lengths[row]]), self._keys[row]
        alike = [(other, own) for other, (of, own) in self._kept.items() if of == key]
        if not (keep and self._most_kept) or any(own[: len(read)] == read for _, own in alike):
            self.close(row)
            return
        for other, own in alike:
            if read[: len(own)] == own:
                del self._kept[other]
                self.close(other)
        self._kept[row] = key, read
        if len(self._kept) > self._most_kept:
            self.forget_oldest()

    def forget_oldest(self, but: int | None = None) -> bool:
        """Close the kept row used longest ago; False if there is none but ``but``."""
        row = next((row for row in self._kept if row != but), None)
        if row is None:
            return False
        del self._kept[row]
        self.close(row)
        return True


def longest_prefix(
    rows: Iterable[CachedPrefix], prompt: Sequence[int], *, whole_rows: bool
) -> tuple[int, int] | None:
    """The row with the longest common prefix, and the prefix's length.

    The prompt's last token is never part of it: its hidden state is needed for the next one.

    Args:
        rows: candidates.
        prompt: to be read.
        whole_rows: a row counts only if all of it begins the prompt: layers of banded attention
            have freed what an earlier end would see.
    """
    best, longest = -1, SHORTEST - 1
    prompt = list(prompt[:-1])
    for row, tokens, length in rows:
        end = min(length, len(prompt))
        if end <= longest or tokens[longest] != prompt[longest] or (whole_rows and end < length):
            continue
        count = common_length(tokens, prompt, end)
        if count > longest and not (whole_rows and count < length):
            best, longest = row, count
    return None if best < 0 else (best, longest)


def common_length(left: Sequence[int], right: Sequence[int], most: int | None = None) -> int:
    """Length of the common prefix of two sequences, ``most`` at most."""
    low, high = 0, min(len(left), len(right)) if most is None else most
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
