"""Wrong tokens: a delay that grows by address.

Attempts of one address are checked one after another. A token that was right from an address before
is checked at once, so that whoever shares an address with a guesser, as behind a proxy, is served.
Other addresses never wait. ``X-Forwarded-For`` is not read: anybody can write it.
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

log = logging.getLogger("lmsmith.server")
Result = TypeVar("Result")

FREE = 3
"""Wrong tokens without a delay."""

FIRST_SECONDS, LONGEST_SECONDS = 0.25, 2.0
FORGET_SECONDS = 900.0
MOST_WAITING = 8
"""Attempts of an address that wait for their turn; more are refused at once."""

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
        """Seconds before the next attempt is checked."""
        if self.wrong < FREE:
            return 0.0
        return float(min(LONGEST_SECONDS, FIRST_SECONDS * 2 ** min(self.wrong - FREE, 30)))


class WrongTokens:
    """Counts wrong tokens by address (of IPv6: by network)."""

    def __init__(self) -> None:
        self._clock, self._sleep = time.monotonic, asyncio.sleep
        self._attempts: OrderedDict[str, _Attempts] = OrderedDict()
        self._right: OrderedDict[tuple[str, bytes], None] = OrderedDict()

    async def check(
        self, address: str, token: str, work: Callable[[], Awaitable[Result | None]]
    ) -> Result | None:
        """The result of ``work``, which is None for a wrong token, once the address may try.

        Raises:
            ApiError: too many attempts of the address wait already (429).
        """
        network = _network(address)
        known = network, hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        if known in self._right:
            if (found := await work()) is not None:
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
                if (found := await work()) is None:
                    self._count(network, attempts)
        finally:
            attempts.waiting -= 1
        if found is not None:
            self._right[known] = None
            if len(self._right) > MOST_KNOWN:
                self._right.popitem(last=False)
        return found

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
            "a wrong token came from %s, number %d; its next one is checked after %g seconds",
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
