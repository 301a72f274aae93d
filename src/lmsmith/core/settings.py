"""List the settings: type, default, range and meaning of each, read from the dataclasses."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmsmith.core.config import (
    as_toml,
    dataclass_in,
    describe_range,
    describe_type,
    encode,
    has_no_default,
    settings_of,
)


@dataclass(frozen=True)
class Setting:
    """One key of a recipe."""

    key: str
    """Dotted, such as ``ppo.optimiser.learning_rate``; ``N`` stands for an item of a list."""
    type: str
    """In the user's words, such as ``a whole number``."""
    default: str | None
    """As TOML; None where the key must be given."""
    range: str
    """Such as ``between 0 and 1``; empty where every value of the type is allowed."""
    meaning: str

    def as_dict(self) -> dict[str, object]:
        return dataclasses.asdict(self)

    @property
    def short_meaning(self) -> str:
        """The first clause of the meaning, without a full stop."""
        return self.meaning.replace("``", "").split(". ")[0].split("; ")[0].rstrip(".")


def describe_settings(cls: type, key: str, defaults: object = None) -> Iterator[Setting]:
    """Every setting of the dataclass ``cls``, found at ``key``, and of the tables within it.

    Args:
        defaults: the object that the defaults are read from, where it is not ``cls()``.
    """
    if defaults is None and not any(map(has_no_default, settings_of(cls))):
        defaults = cls()
    hints = typing.get_type_hints(cls, include_extras=True)
    meanings = field_meanings(cls)
    for field in settings_of(cls):
        name, hint = f"{key}.{field.name}", hints[field.name]
        inner = dataclass_in(hint)
        if inner is not None and inner[1] is None:
            yield from describe_settings(inner[0], name, getattr(defaults, field.name, None))
            continue
        default = None
        if not has_no_default(field):
            made = getattr(defaults, field.name) if defaults is not None else field.default
            default = as_toml(encode(made))
        kind = describe_type(hint)
        yield Setting(name, kind, default, describe_range(hint), meanings.get(field.name, ""))
        if inner is not None:
            yield from describe_settings(inner[0], f"{name}.N")


def field_meanings(cls: type) -> dict[str, str]:
    """Field → the docstring that stands below it in the source of the dataclass, on one line."""
    found = {}
    for each in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(each))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                value = text.value if isinstance(text, ast.Expr) else None
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    found[field.target.id] = " ".join(value.value.split())
    return found


def settings_as_text(settings: Iterable[Setting]) -> str:
    """For a terminal: a key and its default on a line, its type, range and meaning below."""
    lines = []
    for each in settings:
        given = "must be given" if each.default is None else f"= {each.default}"
        kind = f"{each.type}, {each.range}" if each.range else each.type
        meaning = textwrap.fill(
            f"{kind[:1].upper()}{kind[1:]}. {each.meaning.replace('``', '')}", 92
        )
        lines.append(f"{each.key} {given}\n{textwrap.indent(meaning, '    ')}")
    return "\n".join(lines)


def settings_as_markdown(settings: Sequence[Setting]) -> str:
    """A page with a heading and a table for each stage."""
    parts = ["# Settings of every stage\n"]
    tables: dict[str, list[Setting]] = {}
    for each in settings:
        stage = 2 if each.key.startswith(("improve.", "corpus.")) else 1
        name = ".".join(each.key.split(".")[:stage]) if "." in each.key else "The whole recipe"
        tables.setdefault(name, []).append(each)
    for name, rows in tables.items():
        parts.append(f"\n## {name}\n\n| key | type | default | range | meaning |")
        parts.append("|---|---|---|---|---|")
        for each in rows:
            default = "must be given" if each.default is None else f"`{each.default}`"
            meaning = each.meaning.replace("``", "`")
            cells = (f"`{each.key}`", each.type, default, each.range, meaning)
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(parts) + "\n"


def with_comments(text: str, settings: Iterable[Setting]) -> str:
    """A recipe's text with the short meaning above each key that has no comment of its own."""
    meanings: Mapping[str, Any] = {each.key: each.short_meaning for each in settings}
    table = ""
    lines: list[str] = []
    for line in text.splitlines():
        before = lines[-1] if lines else ""
        if line.startswith("["):
            table = line.split("]")[0].strip("[") + "."
        elif " = " in line and "#" not in line and not before.startswith("#"):
            meaning = meanings.get(table + line.split(" = ")[0])
            if meaning:
                lines += textwrap.wrap(f"# {meaning}.", 100, subsequent_indent="# ")
        lines.append(line)
    return "\n".join(lines) + "\n"
