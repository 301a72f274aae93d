"""Rows of the cache for requests that come and go, within a number of pages that is kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from lmsmith.core.errors import UserError
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.kv_cache import PAGE, PagedCache, pages_for

SHORTEST = 16
"""Tokens below which reading them again is not worth the copy of a page."""

CachedPrefix = tuple[int, Sequence[int]]
"""A row of the cache, and the tokens that it has read."""


class PrefixCache:
    """The cache, the rows in use, and rows of earlier conversations that may be begun from.

    Args:
        model: whose keys and values are held.
        cache_bytes: memory of the cache, which is never exceeded.
        rows: most rows in use.
        kept: most earlier conversations; 0 begins from none.

    Raises:
        UserError: there is no room for two pages.
    """

    def __init__(self, model: InferenceDecoder, cache_bytes: int, rows: int, kept: int) -> None:
        config = model.config
        page_bytes = config.cache_bytes_per_token(model.dtype.itemsize) * PAGE
        windows = {config.window_of(layer) for layer in range(config.layers)}
        self.banded = any(windows)
        self._kinds = len(windows)
        self.pages = cache_bytes // page_bytes
        if self.pages < 2 * self._kinds:
            raise UserError(
                f"a cache of {cache_bytes:,} bytes has no room for {2 * PAGE} tokens",
                f"give it {2 * self._kinds * page_bytes:,} or more",
            )
        self._page_bytes = page_bytes / self._kinds
        self._most_kept = kept
        self._kept = KeptPrefixes()
        self._salts: dict[int, str] = {}  # of rows in use and kept
        self.cache = PagedCache(config, rows + kept + 1, self.pages, model.dtype)

    @property
    def tokens(self) -> int:
        """Most tokens that all rows together may hold."""
        return self.pages * PAGE // self._kinds

    @property
    def used_bytes(self) -> int:
        """Earlier conversations included."""
        return int(self.cache.used_pages * self._page_bytes)

    def read_tokens(self, row: int) -> int:
        """How many tokens a row holds."""
        return self.cache.lengths[row]

    def pages_to_come(self, done: int, length: int) -> int:
        """Most pages that a row with ``done`` tokens takes until it has ``length``.

        The page that it is in counts: where that is shared, it will be copied.
        """
        return (pages_for(length) - done // PAGE) * self._kinds

    def open(
        self,
        prompt: Sequence[int],
        live: Sequence[CachedPrefix],
        pages: int,
        *,
        reuse: bool,
        salt: str = "",
    ) -> tuple[int, int]:
        """A row for a prompt, begun from the row that begins so for longest.

        Args:
            prompt: to be read.
            live: rows in use that may be begun from.
            pages: that must be free, were the row empty.
            reuse: whether it may begin from another row.
            salt: of the rows that it may begin from, and that may begin from it.

        Returns:
            The row, and how many tokens of the prompt it holds already; row −1 if there is no
            room now.
        """
        found = None
        if reuse and self._most_kept:
            rows = (held for held in (*self._kept.held(), *live) if self._salts[held[0]] == salt)
            found = longest_prefix(rows, prompt, whole_rows=self.banded)
        if found is not None:
            earlier, done = found
            if self._make_room(pages - done // PAGE * self._kinds, but=earlier):
                self._kept.use(earlier)
                row = self.fork(earlier)
                if done < self.cache.lengths[row]:
                    self.cache.truncate(row, done)
                return row, done
        if not self._make_room(pages, but=None):
            return -1, 0
        row = self.cache.open()
        self._salts[row] = salt
        return row, 0

    def _make_room(self, pages: int, but: int | None) -> bool:
        while self.cache.used_pages + pages > self.pages:
            oldest = self._kept.forget_oldest(but)
            if oldest is None:
                return False
            self.close(oldest)
        return True

    def fork(self, row: int) -> int:
        """A row with the same past."""
        made = self.cache.fork(row)
        self._salts[made] = self._salts[row]
        return made

    def close(self, row: int) -> None:
        """Give a row back."""
        del self._salts[row]
        self.cache.close(row)

    def keep(self, row: int, tokens: Sequence[int]) -> None:
        """Give a row back, and keep what it has read for the next turn."""
        if not self._most_kept:
            self.close(row)
            return
        read = list(tokens[: self.cache.lengths[row]])
        for useless in self._kept.keep(row, read, self._salts[row]):
            self.close(useless)
        if len(self._kept) > self._most_kept:
            oldest = self._kept.forget_oldest()
            assert oldest is not None
            self.close(oldest)

    def forget(self, lengths: dict[int, int]) -> None:
        """Take back what rows were extended by in one reading: row → its length before."""
        for row, length in lengths.items():
            self.cache.truncate(row, length)


class KeptPrefixes:
    """Rows of finished replies, the least recently used one first.

    A row whose tokens another one of its salt begins with is of no use beside it, and is not kept.
    """

    def __init__(self) -> None:
        self._rows: OrderedDict[int, tuple[str, list[int]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def held(self) -> list[CachedPrefix]:
        return [(row, tokens) for row, (_, tokens) in self._rows.items()]

    def keep(self, row: int, tokens: list[int], salt: str = "") -> list[int]:
        """Keep a row; returns the rows that are of no use any more, which may be itself."""
        alike = [(other, before) for other, (own, before) in self._rows.items() if own == salt]
        for _, tokens_before in alike:
            if common_length(tokens_before, tokens) == len(tokens):
                return [row]
        useless = [
            other
            for other, tokens_before in alike
            if common_length(tokens_before, tokens) == len(tokens_before)
        ]
        for other in useless:
            del self._rows[other]
        self._rows[row] = salt, tokens
        return useless

    def use(self, row: int) -> None:
        """A row was begun from; one that is not kept is left alone."""
        if row in self._rows:
            self._rows.move_to_end(row)

    def forget_oldest(self, but: int | None = None) -> int | None:
        """The row used longest ago, which is kept no longer; None if there is none but ``but``."""
        row = next((row for row in self._rows if row != but), None)
        if row is not None:
            del self._rows[row]
        return row


def longest_prefix(
    rows: Iterable[CachedPrefix], prompt: Sequence[int], *, whole_rows: bool
) -> tuple[int, int] | None:
    """The row that begins as ``prompt`` does for longest, and for how many tokens.

    The prompt's last token is never among them: its hidden state is needed for the next one.

    Args:
        rows: candidates.
        prompt: to be read.
        whole_rows: a row counts only if all of it begins the prompt: layers of banded attention
            have given back what an earlier end would see.
    """
    best: tuple[int, int] | None = None
    prompt = list(prompt[:-1])
    for row, tokens in rows:
        count = common_length(tokens, prompt)
        if whole_rows and count < len(tokens):
            continue
        if count >= SHORTEST and (best is None or count > best[1]):
            best = (row, count)
    return best


def common_length(left: Sequence[int], right: Sequence[int], known: int = 0) -> int:
    """How many tokens two sequences begin with in common, of which ``known`` are known."""
    low, high = known, min(len(left), len(right))
    if left[low : low + 1] != right[low : low + 1]:
        return low
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
