"""Damage a file: its bytes, or the values of its structure, JSON, TOML, GGUF or safetensors."""

from __future__ import annotations

import json
import random
import struct
import tomllib
from collections.abc import Callable
from datetime import date
from typing import Any

import tomli_w

NUMBERS = [0, 1, -1, 2, 3, 7, 255, 1024, 65_535, 10**5, 2**31 - 1, 2**31, 2**32, 2**63 - 1]
NUMBERS += [2**63, 2**64 - 1, 2**64, 10**30, -(2**31), -(2**63)]
FRACTIONS = [0.5, -0.5, 1e-320, 1e308, 1.5e300, -0.0, 2.0]
TEXTS = ["", " ", "a" * 5000, "\x00", "../../../etc/passwd", "/dev/zero", "/dev/stdin", "🙂", "é"]
TEXTS += [".", "\n", "\ufeff", "{{ 1 }}", "(" * 200, "(a+)+$", "%s%n", "<|endoftext|>", "/" * 300]


def deep(depth: int, inner: object = 1) -> Any:
    value: Any = inner
    for number in range(depth):
        value = [value] if number % 2 else {"a": value}
    return value


def hostile(chance: random.Random) -> Any:
    """A value that nobody expects."""
    kind = chance.randrange(8)
    if kind == 0:
        return chance.choice([None, True, False])
    if kind in (1, 2):
        return chance.choice(NUMBERS)
    if kind == 3:
        return chance.choice(FRACTIONS)
    if kind in (4, 5):
        return chance.choice(TEXTS)
    if kind == 6:
        return chance.choice([[], {}, [[]], [None], {"a": 1}, [1, "a", None], {"": {}}, [{}]])
    return deep(chance.choice([3, 40, 300]))


def flipped(content: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut, taken out, put in twice or mixed up."""
    found = bytearray(content)
    for _ in range(chance.choice([1, 1, 1, 2, 5, 20])):
        if not found:
            return bytes(found)
        at = chance.randrange(len(found))
        if chance.random() < 0.5:  # the beginning holds what says how the rest is read
            at = chance.randrange(min(len(found), 4096))
        kind = chance.randrange(7)
        length = chance.choice([1, 2, 4, 8, 64, 1000])
        if kind == 0:
            found[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            found[at] = chance.choice([0, 255, 127, 128, 10, 34, 92, chance.randrange(256)])
        elif kind == 2:
            del found[at : at + length]
        elif kind == 3:
            found[at:at] = found[at : at + length] * chance.choice([1, 1, 2, 30])
        elif kind == 4:
            number = chance.choice(NUMBERS) % 2**64
            found[at : at + 8] = struct.pack("<Q", number)
        elif kind == 5:
            other = chance.randrange(len(found))
            found[at : at + length] = found[other : other + length]
        else:
            del found[at:]
    return bytes(found)


Path = tuple[Any, ...]


def _places(value: Any, at: Path = ()) -> list[Path]:
    """Every value in a tree, as the keys that lead to it."""
    found = [at] if at else []
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = list(enumerate(value))[:200]
    for key, inner in items:
        found += _places(inner, (*at, key))
    return found


def changed(
    tree: Any, chance: random.Random, value: Callable[[random.Random], Any] = hostile
) -> Any:
    """A copy of a tree with some of its values changed, taken out, doubled or exchanged."""
    tree = json.loads(json.dumps(tree)) if value is hostile else _copy(tree)
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        places = _places(tree)
        if not places:
            return tree
        # Few values stand at the top and many in lists: each depth has its share.
        depth = chance.choice(sorted({len(each) for each in places}))
        path = chance.choice([each for each in places if len(each) == depth])
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        key, kind = path[-1], chance.randrange(8)
        if kind <= 3:
            parent[key] = value(chance)
        elif kind == 4:
            del parent[key]
        elif kind == 5:
            other = chance.choice(places)
            taken = tree
            for part in other:
                taken = taken[part] if _has(taken, part) else None
            parent[key] = _copy(taken)
        elif (
            kind == 6
            and isinstance(parent[key], (int, float))
            and not isinstance(parent[key], bool)
        ):
            parent[key] = chance.choice([-parent[key], parent[key] * 1000 + 1, parent[key] + 1, 0])
        elif isinstance(parent[key], list):
            parent[key] = parent[key] * chance.choice([0, 2, 50])
        elif isinstance(parent[key], str):
            parent[key] = parent[key] * chance.choice([0, 2, 500])
        elif isinstance(parent, dict):
            parent[f"{key}{chance.choice(['', '_', 's'])}"] = value(chance)
    return tree


def _has(value: Any, key: Any) -> bool:
    if isinstance(value, dict):
        return key in value
    return isinstance(value, list) and isinstance(key, int) and key < len(value)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


RAW = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "-1e-999",
    "[" * 100_000,
    '{"a":' * 2000,
    "1" * 5000,
]
RAW += [
    '"\\ud800"',
    '"\\u0000"',
    "01",
    "1.",
    "'a'",
    "",
    "tru",
    '"',
    "\x00",
    '{"a":1,"a":2}',
    "[1,]",
]


def json_bytes(content: bytes, chance: random.Random) -> bytes:
    """JSON with other values, or what is nearly JSON."""
    kind = chance.randrange(10)
    if kind == 0:
        return flipped(content, chance)
    try:
        tree = json.loads(content)
    except ValueError:
        return flipped(content, chance)
    if kind == 1:
        return json.dumps(hostile(chance)).encode()
    tree = changed(tree, chance)
    text = json.dumps(tree, ensure_ascii=chance.random() < 0.5)
    if kind in (2, 3):  # a value that JSON libraries read differently, or not at all
        marked = changed(tree, chance, lambda _: "@@RAW@@")
        text = json.dumps(marked).replace('"@@RAW@@"', chance.choice(RAW), 1)
    return text.encode("utf-8", "surrogatepass")


def jsonl_bytes(content: bytes, chance: random.Random) -> bytes:
    """JSON lines, one of them changed, or doubled."""
    lines = content.splitlines(keepends=True)
    at = chance.randrange(len(lines))
    if chance.random() < 0.1:
        return flipped(content, chance)
    lines[at] = json_bytes(lines[at], chance).replace(b"\n", b" ") + b"\n"
    return b"".join(lines)


def _toml_value(chance: random.Random) -> Any:
    if chance.random() < 0.15:
        return chance.choice([date(2020, 1, 1), float("nan"), float("inf"), -float("inf")])
    value = hostile(chance)
    return _without_null(value)


def _without_null(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_null(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_null(inner) for inner in value if inner is not None]
    return 0 if value is None else value


RAW_TOML = ["a." * 5000 + "a = 1\n", "x = " + "[" * 3000 + "\n", "x = " + "9" * 5000 + "\n"]
RAW_TOML += ["[" + "a." * 3000 + "b]\n", "x = 0x" + "f" * 3000 + "\n", "x = 1979-05-27\n", "\x00\n"]
RAW_TOML += ["x = " + "{a = " * 500 + "1" + "}" * 500 + "\n", 'x = "\\ud800"\n', "[[data]]\n"]
RAW_TOML += ["[data]\n[data]\n", "x = 1e999\n", "é = 1\n", '"" = 1\n']


def toml_bytes(content: bytes, chance: random.Random) -> bytes:
    """TOML with other values, or what is nearly TOML."""
    kind = chance.randrange(10)
    if kind == 0:
        return flipped(content, chance)
    text = content.decode()
    if kind in (1, 2):
        lines = text.splitlines(keepends=True)
        lines.insert(chance.randrange(len(lines) + 1), chance.choice(RAW_TOML))
        return "".join(lines).encode()
    tree = _without_null(changed(tomllib.loads(text), chance, _toml_value))
    try:
        return tomli_w.dumps(tree).encode()
    except (TypeError, ValueError, RecursionError):
        return flipped(content, chance)


def safetensors_bytes(content: bytes, chance: random.Random) -> bytes:
    """Another header, another length of it, or other bytes."""
    length = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + length], content[8 + length :]
    kind = chance.randrange(10)
    if kind == 0:
        return flipped(content, chance)
    if kind == 1:
        number = chance.choice([*NUMBERS, length - 1, length + 1, len(content)]) % 2**64
        return struct.pack("<Q", number) + header + rest
    if kind == 2:
        rest = rest[: chance.randrange(len(rest) + 1)]
    if kind == 3:
        tree = json.loads(header)
        for entry in tree.values():
            if "dtype" in entry and chance.random() < 0.3:
                entry["dtype"] = chance.choice(
                    ["F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E4M3"]
                )
        header = json.dumps(tree).encode()
    else:
        header = json_bytes(header, chance)
    return struct.pack("<Q", len(header)) + header + rest


# GGUF

_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "B",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 4

    def number(self, kind: str) -> Any:
        (found,) = struct.unpack_from(f"<{kind}", self.content, self.at)
        self.at += struct.calcsize(f"<{kind}")
        return found

    def text(self) -> bytes:
        length = self.number("Q")
        self.at += length
        return self.content[self.at - length : self.at]

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind == _ARRAY:
            inner, count = self.number("I"), self.number("Q")
            return inner, [self.value(inner) for _ in range(count)]
        return self.number(_SCALARS[kind])


def _packed(kind: int, value: Any) -> bytes:
    if kind == _STRING:
        return struct.pack("<Q", len(value)) + value
    if kind == _ARRAY and isinstance(value, bytes):
        return value
    if kind == _ARRAY:
        inner, items = value
        count = struct.pack("<IQ", inner, len(items))
        return count + b"".join(_packed(inner, item) for item in items)
    code = _SCALARS.get(kind, "Q")
    if code in "fd":
        return struct.pack(f"<{code}", float(value) if abs(value) < 1e38 else float("inf"))
    size = 8 * struct.calcsize(f"<{code}")
    return (int(value) % 2**size).to_bytes(size // 8, "little")


def _hostile_gguf(chance: random.Random) -> tuple[int, Any]:
    kind = chance.choice([0, 4, 5, 6, 7, 8, 8, 9, 9, 10, 11, 12, 13, 200])
    if kind == _STRING:
        return kind, chance.choice(TEXTS).encode()
    if kind == _ARRAY:
        inner = chance.choice([0, 4, 5, 6, 8, 9, 10])
        if inner == _ARRAY:
            depth = chance.choice([1, 2, 40, 5000, 100_000])
            return kind, struct.pack("<IQ", _ARRAY, 1) * depth + struct.pack("<IQI", 4, 1, 1)
        items: list[Any] = [b"a", b"", b"<s>"] if inner == _STRING else [0, 1, 2**31]
        return kind, (inner, items * chance.choice([0, 1, 100]))
    return kind, chance.choice([*NUMBERS, *FRACTIONS]) if kind in (6, 12) else chance.choice(
        NUMBERS
    )


def gguf_bytes(content: bytes, chance: random.Random) -> bytes:
    """Other metadata, sizes, offsets, types and counts; or other bytes."""
    if chance.random() < 0.15:
        return flipped(content, chance)
    reader = _Reader(content)
    version, tensor_count, value_count = (reader.number(kind) for kind in "IQQ")
    values = []
    for _ in range(value_count):
        key, kind = reader.text(), reader.number("I")
        values.append([key, kind, reader.value(kind)])
    tensors = []
    for _ in range(tensor_count):
        name, dimensions = reader.text(), reader.number("I")
        shape = [reader.number("Q") for _ in range(dimensions)]
        tensors.append([name, shape, reader.number("I"), reader.number("Q")])
    rest = content[-(-reader.at // 32) * 32 :]
    for _ in range(chance.choice([1, 1, 1, 2, 4])):
        value, tensor = chance.choice(values), chance.choice(tensors)
        match chance.randrange(14):
            case 0 | 1:
                value[1:] = _hostile_gguf(chance)
            case 2 | 3 | 4:
                _change_gguf_value(value, chance)
            case 5:
                value[0] = chance.choice(values)[0]
            case 6:
                values.remove(value) if len(values) > 1 else None
            case 7 | 8:
                tensor[1] = list(tensor[1])
                if tensor[1]:
                    at = chance.randrange(len(tensor[1]))
                    tensor[1][at] = chance.choice([*NUMBERS, tensor[1][at] * 2, tensor[1][at] // 2])
                tensor[1] = chance.choice(
                    [tensor[1], tensor[1] * 2, tensor[1][:-1], tensor[1][::-1]]
                )
            case 9:
                tensor[2] = chance.choice([0, 1, 2, 3, 6, 8, 10, 14, 16, 28, 30, 99, 2**31])
            case 10:
                tensor[3] = chance.choice([*NUMBERS, tensor[3] + 1, 0, chance.choice(tensors)[3]])
            case 11:
                tensor[0] = chance.choice([chance.choice(tensors)[0], b"x", tensor[0] + b"x"])
            case 12:
                tensors = chance.choice([tensors[:-1], tensors + tensors[:1]]) or tensors
            case _:
                if chance.random() < 0.5:
                    tensor_count = chance.choice(NUMBERS)
                else:
                    value_count = chance.choice(NUMBERS)
    head = struct.pack(
        "<4sIQQ", b"GGUF", version, *(
            found if wrong == same else wrong % 2**64
            for found, wrong, same in (
                (len(tensors), tensor_count, len(tensors)),
                (len(values), value_count, len(values)),
            )
        )
    )  # fmt: skip
    for key, kind, value in values:
        head += _packed(_STRING, key) + struct.pack("<I", kind) + _packed(kind, value)
    for name, shape, kind, offset in tensors:
        head += _packed(_STRING, name) + struct.pack("<I", len(shape))
        head += b"".join(struct.pack("<Q", each % 2**64) for each in shape)
        head += struct.pack("<IQ", kind % 2**32, offset % 2**64)
    return head + bytes(-len(head) % 32) + rest


def _change_gguf_value(value: list[Any], chance: random.Random) -> None:
    """Another value of the same type."""
    _, kind, found = value
    if kind == _STRING:
        value[2] = chance.choice([*TEXTS, "llama", "gpt2", "none", "yarn", "linear"]).encode()
    elif kind == _ARRAY and not isinstance(found, bytes):
        inner, items = found
        items = list(items)
        if items and chance.random() < 0.5:
            at = chance.randrange(len(items))
            items[at] = (
                chance.choice(TEXTS).encode() if inner == _STRING else chance.choice(NUMBERS)
            )
        else:
            items = chance.choice([[], items[:-1], items * 2, items[:1] * len(items)])
        value[2] = (inner, items)
    elif kind != _ARRAY:
        value[2] = chance.choice([*NUMBERS, found + 1, found * 2])
