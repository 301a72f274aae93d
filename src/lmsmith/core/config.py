"""Read TOML tables into frozen dataclasses of settings, and report every mistake at once."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import json
import math
import sys
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from enum import Enum
from itertools import islice
from pathlib import PurePath
from typing import Annotated, Any, Literal, TypeVar

import msgspec
import tomli_w

from lmsmith.core.errors import UserError
from lmsmith.core.renamed_keys import RENAMED_KEYS

T = TypeVar("T")

PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
NonNegativeInt = Annotated[int, msgspec.Meta(ge=0)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
NonNegativeFloat = Annotated[float, msgspec.Meta(ge=0)]
Fraction = Annotated[float, msgspec.Meta(ge=0, le=1)]
FractionBelowOne = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class _Missing:
    """The value of a setting that was not given."""


MISSING = _Missing()

NOT_A_SETTING = {"encoded": False}
"""Metadata of a field that no recipe can set and no record holds."""

SHORTHAND = {"recorded": False}
"""Metadata of a setting that stands for others, which a record holds in its place."""


@dataclass(frozen=True)
class Problem:
    """One mistake in the settings, printed as ``key = value: expected; fix``."""

    key: str
    value: object
    expected: str
    fix: str = ""

    def __str__(self) -> str:
        value = "" if self.value is MISSING else f" = {as_toml(self.value)}"
        fix = f"; {self.fix}" if self.fix else ""
        return f"{self.key}{value}: {self.expected}{fix}"

    def as_dict(self) -> dict[str, object]:
        """For ``--json``; the value of a missing setting is None."""
        value = None if self.value is MISSING else encode(self.value)
        return {"key": self.key, "value": value, "expected": self.expected, "fix": self.fix}


class SettingsError(UserError):
    """All problems of some settings in one message, one line a problem."""

    def __init__(self, problems: Sequence[Problem], where: str = "settings") -> None:
        count = "a problem" if len(problems) == 1 else f"{len(problems)} problems"
        lines = "\n".join(f"  {problem}" for problem in problems)
        super().__init__(f"{where}: {count}\n{lines}")
        self.problems = tuple(problems)


def decode(cls: type[T], table: Mapping[str, object], key: str) -> tuple[T | None, list[Problem]]:
    """Make the dataclass ``cls`` from a TOML table found at ``key``.

    Looks for unknown keys, wrong types, missing settings, values out of the range that stands
    at the field, and, if ``cls`` has a method ``check``, for the problems that it returns. If
    ``cls`` has a method ``expand``, it first writes out the shorthands in the table.

    Returns:
        The object, and no problems; or None, and all of them.
    """
    made, problems = _make(cls, table, key)
    return (None if problems else made), problems


def _make(cls: type[T], table: Mapping[str, object], key: str) -> tuple[T | None, list[Problem]]:
    """The object, even where values are out of range or contradict each other; and all problems."""
    hints, ranges = typing.get_type_hints(cls), _hints(cls)
    fields = {f.name: f for f in settings_of(cls)}
    table = getattr(cls, "expand", dict)(table)
    right = [_join(key, name) for name in fields]
    problems = [
        unknown_key(_join(key, name), value, right, setting_keys(cls, key))
        for name, value in table.items()
        if name not in fields
    ]
    values: dict[str, object] = {}
    makeable = True
    for name, field in fields.items():
        place = _join(key, name)
        if name in table:
            values[name], found = _decode_value(hints[name], table[name], place)
            problems += found or _out_of_range(ranges[name], values[name], place)
            makeable = makeable and not (found and values[name] is None)
        elif has_no_default(field):
            fix = f"set it to {describe_type(hints[name])}"
            problems.append(Problem(place, MISSING, "missing", fix))
            makeable = False
    if not makeable:
        return None, problems
    try:
        made = cls(**values)
    except (ValueError, TypeError) as error:  # from __post_init__
        return None, [*problems, Problem(key, MISSING, str(error))]
    return made, [*problems, *_contradictions(made, key)]


def problems_in(settings: object, key: str = "") -> list[Problem]:
    """Values out of range and contradictions in a settings dataclass and in those within it."""
    found: list[Problem] = []
    for name, hint in _hints(type(settings)).items():
        value = getattr(settings, name)
        found += _out_of_range(hint, value, _join(key, name))
        if dataclasses.is_dataclass(value):
            found += problems_in(value, _join(key, name))
    return found + _contradictions(settings, key)


def _contradictions(settings: object, key: str) -> list[Problem]:
    """Problems that the settings' own method ``check`` finds."""
    found: list[Problem] = getattr(settings, "check", list)()
    return [dataclasses.replace(each, key=_join(key, each.key)) for each in found]


def _hints(cls: type) -> dict[str, Any]:
    """Field → its type, the range included."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _out_of_range(hint: object, value: object, key: str) -> list[Problem]:
    """The problem of a ``value`` that is not in the range that the type ``hint`` states."""
    if not isinstance(value, int | float):
        return []
    if not abs(value) <= sys.float_info.max:  # so whole numbers too that no float can be
        return [Problem(key, value, "must be a finite number")]
    for meta in _ranges(hint):
        too_low = value < _or(meta.ge, -math.inf) or value <= _or(meta.gt, -math.inf)
        if too_low or value > _or(meta.le, math.inf) or value >= _or(meta.lt, math.inf):
            fix = "raise it" if too_low else "lower it"
            return [Problem(key, value, f"must be {describe_range(hint)}", fix)]
    return []


def _or(bound: float | None, otherwise: float) -> float:
    return otherwise if bound is None else bound


def _ranges(hint: object) -> list[msgspec.Meta]:
    """The ranges of a type, or of the types that it is one of, such as ``PositiveInt | None``."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [meta for each in typing.get_args(hint) for meta in _ranges(each)]
    arguments = typing.get_args(hint) if typing.get_origin(hint) is Annotated else ()
    return [each for each in arguments if isinstance(each, msgspec.Meta)]


def describe_range(hint: object) -> str:
    """The range of a type in the user's words, such as ``1 or more``; empty if it has none."""
    words = []
    for meta in _ranges(hint):
        if meta.ge is not None and meta.le is not None:
            words.append(f"between {meta.ge} and {meta.le}")
            continue
        bounds = {"{} or more": meta.ge, "above {}": meta.gt}
        bounds |= {"{} or less": meta.le, "below {}": meta.lt}
        words += [text.format(bound) for text, bound in bounds.items() if bound is not None]
    return " and ".join(words)


def has_no_default(field: dataclasses.Field[Any]) -> bool:
    """Whether a recipe must give this setting."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def settings_of(cls: type) -> list[dataclasses.Field[Any]]:
    """The fields that a recipe can set."""
    fields = dataclasses.fields(typing.cast(Any, cls))
    return [f for f in fields if f.init and f.metadata.get("encoded", True)]


def setting_keys(cls: type, key: str) -> list[str]:
    """The dotted key of every setting in the dataclass ``cls`` at ``key``, tables within too."""
    hints = typing.get_type_hints(cls)
    found = []
    for f in settings_of(cls):
        name, inner = _join(key, f.name), dataclass_in(hints[f.name])
        found += [name] if inner is None or inner[1] else setting_keys(inner[0], name)
    return found


def unknown_key(
    key: str, value: object, right_keys: Sequence[str], deeper_keys: Sequence[str] = ()
) -> Problem:
    """The problem of a key that does not exist, with the nearest of ``right_keys``.

    If its table was forgotten, one of ``deeper_keys`` may be meant.
    """
    new = RENAMED_KEYS.get(key.split(".")[-1], ())
    if renamed := [right for right in right_keys if right.split(".")[-1] in new]:
        return Problem(key, value, "has a new name", f"write {renamed[0]}")
    name = key.split(".")[-1].casefold()
    by_name = {right.split(".")[-1]: right for right in right_keys}
    near = difflib.get_close_matches(name, by_name, n=1, cutoff=0.6)
    deeper = {right.split(".")[-1] for right in deeper_keys}
    if name in deeper or not near:
        near = difflib.get_close_matches(name, deeper, n=1, cutoff=0.6)
        found = [right for right in deeper_keys if right.split(".")[-1] in near]
    else:
        found = [by_name[near[0]]]
    if found:
        fix = f"did you mean {' or '.join(found)}?"
    elif right_keys:
        fix = "the keys here are " + ", ".join(by_name)
    else:
        fix = "there are no settings here"
    return Problem(key, value, "unknown key", fix)


def with_new_keys(cls: type, table: Mapping[str, Any]) -> dict[str, Any]:
    """A table of ``cls`` that an earlier version wrote, with the keys that settings have now."""
    names = {f.name for f in settings_of(cls)}
    renamed = {old: new for old, all_new in RENAMED_KEYS.items() for new in all_new if new in names}
    return {
        name if name in names else renamed.get(name, name): value for name, value in table.items()
    }


def refuse_old_keys(cls: type, given: Mapping[str, object]) -> None:
    """SettingsError that names the new keywords where ``cls`` is called with renamed ones."""
    names = [f.name for f in dataclasses.fields(cls)]
    problems = [
        unknown_key(name, value, names) for name, value in given.items() if name not in names
    ]
    if problems:
        raise SettingsError(problems, cls.__name__)


def _decode_value(hint: object, value: object, key: str) -> tuple[Any, list[Problem]]:
    """A value of the type ``hint``, or the problems in it."""
    inner = dataclass_in(hint)
    if inner is None:
        return _convert(hint, value, key)
    cls, container = inner
    if value is None and type(None) in typing.get_args(hint):
        return None, []
    if container is None:
        short = getattr(cls, "from_text", None)
        if short is not None and isinstance(value, str):
            made = short(value)
            return made, problems_in(made, key)
        if not isinstance(value, Mapping):
            return None, [Problem(key, value, "must be a table", f"write [{key}] and its settings")]
        return _make(cls, value, key)
    if container is dict:
        items: Any = value.items() if isinstance(value, Mapping) else None
        expected = "must be a table of tables"
    else:
        items = enumerate(value) if isinstance(value, list | tuple) else None
        expected = "must be a list of tables"
    if items is None:
        short = hasattr(cls, "from_text") and isinstance(value, str)
        table = f"[{key}.NAME]" if container is dict else f"[[{key}]]"
        fix = f"write [{as_toml(value)}]" if short else f"write {table} for each"
        return None, [Problem(key, value, expected, fix)]
    each: dict[Any, Any] = {}
    problems: list[Problem] = []
    for name, item in items:
        each[name], found = _decode_value(cls, item, _join(key, str(name)))
        problems += found
    if problems and None in each.values():
        return None, problems
    return (each if container is dict else container(each.values())), problems


def dataclass_in(hint: object) -> tuple[type[Any], type[Any] | None] | None:
    """(dataclass, container) of ``X``, ``X | None``, ``list[X]``, ``tuple[X, ...]``, ``dict``."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return hint, None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return dataclass_in(arguments[0])
    if origin in (typing.Union, types.UnionType):
        found = [dataclass_in(option) for option in arguments if option is not type(None)]
        return found[0] if len(found) == 1 else None
    if origin in (list, tuple, dict) and arguments:
        inner = dataclass_in(arguments[1] if origin is dict else arguments[0])
        if inner is not None and inner[1] is None:
            return inner[0], origin
    return None


def _convert(hint: Any, value: object, key: str) -> tuple[Any, list[Problem]]:
    try:
        made = msgspec.convert(value, type=hint)
        if isinstance(made, float) and not math.isfinite(made):
            return None, [Problem(key, value, "must be a finite number")]
        return made, []
    except msgspec.ValidationError:
        alone = typing.get_origin(hint) in (list, tuple) and isinstance(value, str | int | float)
        fix = f"write [{as_toml(value)}]" if alone else ""
        return None, [Problem(key, value, f"must be {describe_type(hint)}", fix)]


def describe_type(hint: object) -> str:
    """A type in the user's words: ``a number``, ``one of "auto", "on", "off"``."""
    names: dict[object, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text in quotes",
        type(None): "left out",
    }
    if hint in names:
        return names[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return describe_type(arguments[0])
    if origin is Literal:
        return "one of " + ", ".join(as_toml(option) for option in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe_type(option) for option in arguments)
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return "a list of " + ", ".join(describe_type(argument) for argument in arguments)
    if origin in (list, tuple):
        return f"a list, each {describe_type(arguments[0])}" if arguments else "a list"
    if origin is dict:
        return f"a table, each value {describe_type(arguments[1])}"
    if dataclasses.is_dataclass(hint):
        return "a table"
    return getattr(hint, "__name__", str(hint))


def encode(value: object) -> Any:
    """A setting as plain values, without fields that are `NOT_A_SETTING` or `SHORTHAND`."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: encode(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if f.metadata.get("encoded", True) and f.metadata.get("recorded", True)
        }
    if isinstance(value, Mapping):
        return {str(name): encode(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, PurePath | date | time) else value


def apply_overrides(tables: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """A copy of ``tables`` with every ``"stage.key=value"`` put in.

    The value is read as TOML (``0.05``, ``true``, ``[1, 2]``), else taken as text. A number in
    the key picks an item of a list: ``data.sources.0.weight=2``. UserError for all other forms.
    """
    changed = copy.deepcopy(dict(tables))
    problems: list[Problem] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        path = [part.strip() for part in key.split(".")]
        if not equals or not all(path):
            fix = "write --set STAGE.KEY=VALUE, for example --set ppo.kl_coefficient=0.05"
            problems.append(Problem(f"--set {override}", MISSING, "has no = and value", fix))
        elif (stop := _put(changed, path, parse_value(text))) is not None:
            expected = f"{stop} is not a table with such a key"
            problems.append(Problem(f"--set {key.strip()}", MISSING, expected))
    if problems:
        raise SettingsError(problems, "--set")
    return changed


def parse_value(text: str) -> Any:
    """``text`` as a TOML value, or unchanged if it is none."""
    with contextlib.suppress(ValueError, RecursionError):  # TOMLDecodeError is a ValueError
        table = tomllib.loads(f"value = {text}")
        if set(table) == {"value"}:
            return table["value"]
    return text.strip()


def _put(tables: dict[str, Any], path: list[str], value: object) -> str | None:
    """Put ``value`` at ``path``; the key that stands in the way is returned if one does."""
    place: Any = tables
    for depth, name in enumerate(path, start=1):
        index: Any = name
        if isinstance(place, list) and name.isdecimal() and int(name) < len(place):
            index = int(name)
        elif not isinstance(place, dict):
            return ".".join(path[: depth - 1])
        if depth == len(path):
            place[index] = value
        else:
            place = place.setdefault(index, {}) if isinstance(place, dict) else place[index]
    return None


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name


_SHOWN = 80
"""Characters of a value in a message."""


def as_toml(value: object, depth: int = 0) -> str:
    """A value as the user would have written it, shortened if long."""
    if depth > _DEEPEST:
        return "…"
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, Mapping):
        pairs = islice(value.items(), _SHOWN)
        text = "{" + ", ".join(f"{name} = {as_toml(each, depth + 1)}" for name, each in pairs) + "}"
    elif isinstance(value, list | tuple):
        text = "[" + ", ".join(as_toml(each, depth + 1) for each in value[:_SHOWN]) + "]"
    elif isinstance(value, str):
        text = json.dumps(value[: _SHOWN + 1], ensure_ascii=False)
    else:
        text = str(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "…"


MOST_TOML = 1 << 20
"""Characters of a recipe or a task."""

_DEEPEST = 16
"""Tables and lists within each other."""

_MOST_DOTS = 200
"""In a key: the library takes time by the square of their number."""


def parse_toml(text: str, where: object) -> dict[str, Any]:
    """The tables of a TOML text.

    Raises:
        UserError: it is none, or larger or nested deeper than a person writes.
    """
    before_equals = text.split("=")
    longest = max((part.rpartition("\n")[2].count(".") for part in before_equals), default=0)
    try:
        if len(text) > MOST_TOML or longest > _MOST_DOTS:
            raise ValueError(f"more than {MOST_TOML:,} characters, or a key of too many parts")
        table = tomllib.loads(text)
        if _is_deeper(table, _DEEPEST):
            raise ValueError(f"tables and lists are nested more than {_DEEPEST} times")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid TOML: {error}", "Fix that line.") from error
    return table


def _is_deeper(value: object, depth: int) -> bool:
    inner: Iterable[object] = ()
    if isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, list):
        inner = value
    return depth < 0 or any(_is_deeper(each, depth - 1) for each in inner)


def to_toml(tables: Mapping[str, object]) -> str:
    """Settings as TOML; None, which TOML lacks, is left out."""
    return tomli_w.dumps(_without_none(tables))


def _without_none(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_without_none(item) for item in value if item is not None]
    return value
