"""Packages that only some need: named, with the extra that brings them, where one is missing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from lmsmith.core.errors import UserError


@contextlib.contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Imports inside need the packages of an extra.

    Raises:
        UserError: one is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(
            f"the package {error.name} is not installed",
            f'install it: pip install "lmsmith[{name}]"',
        ) from error
