"""Wrong tokens: a delay that grows by address.

A random token is looked up at once: nobody who guesses from the same address keeps it out, and no
rate of guesses finds it. A wrong one is answered late, the answers of one address one after
another. A token that can be guessed, which a server of this machine's own addresses may have, is
compared only then, unless it was right from that address before. Other addresses never wait.
``X-Forwarded-For`` counts if a trusted proxy sends it: anybody else can write it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import ipaddress
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from lmsmith.server.errors import ApiError
from lmsmith.server.turns import Turns

log = logging.getLogger("lmsmith.server")
Result = TypeVar("Result")

FREE = 3
"""Wrong tokens without a delay."""

FIRST_SECONDS, LONGEST_SECONDS = 0.25, 2.0
FORGET_SECONDS = 900.0
MOST_WAITING = 8
"""Attempts of an address that wait for their turn; more are refused at once."""

LOOKING_UP = 2
"""Tokens and cookies of an address that are looked up in the database at once."""

MOST_KNOWN = 10_000
"""Addresses, and right tokens, that are remembered."""


@dataclass
class _Attempts:
    wrong: int = 0
    last: float = 0.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0

    @property
    def delay(self) -> float:
        """Seconds before the next wrong attempt is answered."""
        if self.wrong < FREE:
            return 0.0
        return float(min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** min(self.wrong - FREE, 30)))


class WrongTokens:
    """Counts wrong tokens by address (of IPv6: by network)."""

    def __init__(self) -> None:
        self._clock, self._sleep = time.monotonic, asyncio.sleep
        self._attempts: OrderedDict[str, _Attempts] = OrderedDict()
        self._right: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._looking_up = Turns(LOOKING_UP)

    async def check(
        self,
        address: str,
        token: str,
        at_once: Callable[[], Awaitable[Result | None]],
        in_turn: Callable[[], Result | None] = lambda: None,
    ) -> Result | None:
        """Find what a token opens; None, after a delay, for a wrong one.

        Args:
            at_once: finds a random token.
            in_turn: finds a token that can be guessed.

        Raises:
            ApiError: too many attempts of the address wait already (429).
        """
        network = _network(address)
        if (found := await self.look_up(address, at_once)) is not None:
            return found
        known = network, hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        if known in self._right:
            if (found := in_turn()) is not None:
                return found
            self._right.pop(known, None)
        attempts = self._of(network)
        if attempts.delay and attempts.waiting >= MOST_WAITING:
            raise ApiError(
                429,
                "too many wrong tokens came from your address; try again later",
                "rate_limit_error",
                code="too_many_attempts",
                headers={"Retry-After": str(int(LONGEST_SECONDS))},
            )
        attempts.waiting += 1
        try:
            async with attempts.turn:
                if attempts.delay:
                    await self._sleep(attempts.delay)
                if (found := in_turn()) is None:
                    self._count(network, attempts)
        finally:
            attempts.waiting -= 1
        if found is not None:
            self._right[known] = None
            if len(self._right) > MOST_KNOWN:
                self._right.popitem(last=False)
        return found

    async def look_up(self, address: str, find: Callable[[], Awaitable[Result]]) -> Result:
        """Find what a token or cookie opens: an address has `LOOKING_UP` turns at the database."""
        async with self._looking_up.of(_network(address)):
            return await find()

    def _of(self, network: str) -> _Attempts:
        found = self._attempts.get(network)
        is_old = found is not None and self._clock() - found.last > FORGET_SECONDS
        if found is None or (is_old and not found.waiting):
            found = self._attempts[network] = _Attempts(last=self._clock())
        self._attempts.move_to_end(network)
        if len(self._attempts) > MOST_KNOWN:
            self._attempts.popitem(last=False)
        return found

    def _count(self, network: str, attempts: _Attempts) -> None:
        attempts.wrong, attempts.last = attempts.wrong + 1, self._clock()
        log.warning(
            "a wrong token came from %s, number %d; its next one is answered after %g seconds",
            network,
            attempts.wrong,
            attempts.delay,
        )


def _network(address: str) -> str:
    """An address; of IPv6 the network that one customer has (RFC 6177)."""
    with contextlib.suppress(ValueError):
        found = ipaddress.ip_address(address)
        if isinstance(found, ipaddress.IPv6Address):
            if found.ipv4_mapped is not None:
                return str(found.ipv4_mapped)
            return str(ipaddress.ip_network((found, 64), strict=False))
    return address


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"
