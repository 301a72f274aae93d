"""A recipe written out as TOML again, so that the page alone is enough to repeat the run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(tables: Mapping[str, object]) -> str:
    """``tables`` as TOML: plain values first, then a table each.

    Tables inside tables are written inline; None, which TOML lacks, is left out.
    """
    plain = [
        f"{_key(name)} = {_value(value)}"
        for name, value in tables.items()
        if value is not None and not isinstance(value, Mapping)
    ]
    blocks = ["\n".join(plain)] if plain else []
    for name, table in tables.items():
        if isinstance(table, Mapping):
            lines = [f"{_key(key)} = {_value(v)}" for key, v in table.items() if v is not None]
            blocks.append("\n".join([f"[{_key(name)}]", *lines]))
    return "\n\n".join(blocks) + "\n"


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _string(name)


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, float):
        if math.isfinite(value):
            return repr(value)
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, Mapping):
        inside = (
            f"{_key(key)} = {_value(item)}" for key, item in value.items() if item is not None
        )
        return "{" + ", ".join(inside) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value if item is not None) + "]"
    return str(value)
