"""The values of a row from outside, checked; an error names the place and the key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lmsmith.core.errors import UserError
from lmsmith.corpus.messages import name_of_type


def require_keys(row: Mapping[str, object], keys: Iterable[str], where: str) -> None:
    """See that a row has all of these keys."""
    for key in keys:
        if key not in row:
            found = ", ".join(map(repr, row)) or "none"
            raise UserError(f"{where}: no {key!r} in this row; its keys are: {found}")


def text_of(row: Mapping[str, object], key: str, where: str, default: str | None = None) -> str:
    """The text at a key; ``default``, where given, stands for null and for a missing key."""
    value = row.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise UserError(f"{where}: {key!r} must be text, not {name_of_type(value)}")
    return value


def id_of(row: Mapping[str, object], where: str) -> str:
    """The row's ``id``, text or a whole number; empty if it has none."""
    value = row.get("id")
    return str(value) if type(value) is int else text_of(row, "id", where, default="")
