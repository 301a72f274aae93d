"""Files whose few bytes would become much memory, or long loops, when they are read."""

from __future__ import annotations

import base64
import itertools
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fuzz.isolate import isolated
from lmsmith.catalogue.reading import load_any_tokenizer
from lmsmith.core.errors import UserError
from lmsmith.evaluation.tasks.data import read_items
from lmsmith.evaluation.tasks.spec import DataSpec
from lmsmith.models.interop.folders import read_transformers_folder
from lmsmith.models.interop.gguf_file import open_gguf
from lmsmith.models.weights_file import read_shapes
from lmsmith.tokenizers.description import check_description
from lmsmith.tokenizers.text_growth import text_growth
from lmsmith.tokenizers.token_bytes import byte_of_character

EMPTY = {"[]": "[],", "{}": "{},", "object": '{"":1},', "nested": "[[]],"}


FLAGS = ("add_prefix_space", "trim_offsets", "use_regex")


def ends_well(load: Callable[[], object], path: Path) -> None:
    """Read in a process with limits: within the memory and the time that the file's size allows."""
    files = path.iterdir() if path.is_dir() else [path]
    ending = isolated(load, sum(file.stat().st_size for file in files))
    assert not ending.is_fault, f"{ending.kind}: {ending.text}"


def tokenizer(folder: Path, **values: Any) -> Path:
    """A folder with a tokenizer.json of these values."""
    folder.mkdir(exist_ok=True)
    model = {"type": "BPE", "vocab": {"a": 0, "</s>": 1}, "merges": []}
    decoder = {"type": "ByteLevel", **dict.fromkeys(FLAGS, True)}
    plain = {"decoder": decoder, "added_tokens": [added(1, "</s>")], "model": model}
    content = json.dumps(plain | values, separators=(",", ":"))
    (folder / "tokenizer.json").write_text(content)
    (folder / "tokenizer_config.json").write_text('{"eos_token":"</s>"}')
    return folder


def added(number: int, content: str, **values: Any) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True, **flags, **values}


def use(folder: Path, text: str = "hello " * 20) -> None:
    found = load_any_tokenizer(folder)
    found.encode_chat([{"role": "user", "content": text}], ask=True)
    found.decode(found.encode(text))


# JSON


@pytest.mark.parametrize("item", EMPTY.values(), ids=EMPTY)
@pytest.mark.parametrize("where", ["config", "index", "tokenizer", "task", "task lines"])
def test_many_values_in_unknown_keys(tmp_path: Path, where: str, item: str) -> None:
    text = f'"x":[{item * (18_000_000 // len(item))}1]}}'
    if where == "config":
        (tmp_path / "config.json").write_text('{"model_type":"llama",' + text)
        load: Callable[[], object] = lambda: read_transformers_folder(tmp_path)  # noqa: E731
    elif where == "index":
        (tmp_path / "config.json").write_text('{"model_type":"llama"}')
        (tmp_path / "model.safetensors.index.json").write_text('{"weight_map":{},' + text)
        load = lambda: read_transformers_folder(tmp_path)  # noqa: E731
    elif where == "tokenizer":
        (tmp_path / "tokenizer.json").write_text('{"model":{"type":"BPE","vocab":{}},' + text)
        load = lambda: load_any_tokenizer(tmp_path)  # noqa: E731
    else:
        file = tmp_path / ("a.json" if where == "task" else "a.jsonl")
        file.write_text('{"rows":[],' + text)
        load = lambda: list(read_items(file, DataSpec(file=file.name, field="rows")))  # noqa: E731
    ends_well(load, tmp_path)


@pytest.mark.parametrize(
    "entry",
    ['"{}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}', '"__metadata__":{{"{}":""}}'],
)
def test_a_header_of_too_many_keys(tmp_path: Path, entry: str) -> None:
    names = (f"{number:x}" for number in range(1_200_000))
    if entry.startswith('"__'):
        header = '{"__metadata__":{' + ",".join(f'"{name}":""' for name in names) + "}}"
    else:
        header = "{" + ",".join(entry.format(name) for name in names) + "}"
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode())
    ends_well(lambda: read_shapes(path), path)
    with pytest.raises(UserError, match="more tensors than any model has"):
        read_shapes(path)


# Tokenizers


def test_tokens_before_a_text_are_few(tmp_path: Path) -> None:
    piece = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    named = {"</s>": {"id": "</s>", "ids": [1] * 8000, "tokens": ["</s>"] * 8000}}
    step = {"type": "TemplateProcessing", "single": [piece] * 8000, "special_tokens": named}
    folder = tokenizer(tmp_path / "m", post_processor=step)
    ends_well(lambda: use(folder), folder)
    with pytest.raises(UserError, match="more than 64 tokens before each text"):
        load_any_tokenizer(folder)


@pytest.mark.parametrize("special", [True, False])
def test_many_added_tokens_are_read_in_little_time(tmp_path: Path, special: bool) -> None:
    letters = [chr(number) for number in range(0x4E00, 0x4E00 + 200)]
    names = [f"{a}[{b}]" for a, b in itertools.product(letters, letters)]
    tokens = [added(n + 1, name, special=special) for n, name in enumerate(["</s>", *names])]
    texts = "".join(f"{{{{ 'said{number}' }}}}" for number in range(500))
    folder = tokenizer(tmp_path / "m", added_tokens=tokens)
    (folder / "chat_template.jinja").write_text(texts + "{{ messages[0].content }}")
    ends_well(lambda: use(folder, "".join(letters) * 200), folder)


def test_texts_of_a_template_and_names_of_tokens_are_compared_within_bounds(tmp_path: Path) -> None:
    tokens = [added(n + 1, name) for n, name in enumerate(["</s>", *map(str, range(60_000))])]
    folder = tokenizer(tmp_path / "m", added_tokens=tokens)
    texts = "".join(f"{{{{ 'said{number}' }}}}" for number in range(30_000))
    (folder / "chat_template.jinja").write_text(texts)
    ends_well(lambda: use(folder), folder)


def splits(length: int) -> tuple[dict[str, int], list[list[str]]]:
    """All texts of two letters up to a length, and all ways to make them."""
    texts = ["".join(p) for n in range(1, length + 1) for p in itertools.product("ab", repeat=n)]
    merges = [[text[:cut], text[cut:]] for text in texts for cut in range(1, len(text))]
    return {"</s>": 0} | {text: number for number, text in enumerate(texts, start=1)}, merges


@pytest.mark.parametrize("kind", ["pairs", "texts", "without a type", "repeated"])
def test_merges_take_no_more_memory_than_their_file_allows(tmp_path: Path, kind: str) -> None:
    vocabulary, merges = splits(15)
    model: dict[str, Any] = {"type": "BPE", "vocab": vocabulary, "merges": merges}
    if kind == "texts":
        model["merges"] = [" ".join(merge) for merge in merges]
    if kind == "without a type":
        del model["type"]
    if kind == "repeated":
        model["merges"] = [["a", "a"]] * (15 * len(vocabulary))
    folder = tokenizer(tmp_path / "m", model=model, added_tokens=[added(0, "</s>")])
    ends_well(lambda: use(folder), folder)


@pytest.mark.parametrize("kind", ["BPE", "WordLevel", "Unigram"])
@pytest.mark.parametrize("count", [200_000, 1_000_000])
def test_vocabularies_take_no_more_memory_than_their_file_allows(
    tmp_path: Path, kind: str, count: int
) -> None:
    vocabulary: Any = {"</s>": 0} | {f"{number:x}": number + 1 for number in range(count)}
    model = {"type": kind, "vocab": vocabulary, "merges": [], "unk_token": "</s>"}
    if kind == "Unigram":
        scored = [["</s>", 0.0], *([f"{number:x}", -1.5] for number in range(count))]
        model = {"type": kind, "vocab": scored, "unk_id": 0}
    folder = tokenizer(tmp_path / "m", model=model, added_tokens=[added(0, "</s>")])
    ends_well(lambda: use(folder), folder)


@pytest.mark.parametrize(
    ("tokens", "merges", "size", "kind"),
    [
        (128_000, 280_000, 9_085_657, "text"),  # Llama 3
        (151_643, 151_387, 7_028_015, "text"),  # Qwen 2.5
        (256_000, 580_604, 17_518_525, "text"),  # Gemma 2
        (262_144, 514_906, 33_384_568, "pair"),  # Gemma 3
        (250_002, 0, 17_082_730, "scores"),  # XLM-RoBERTa
    ],
)
def test_published_vocabularies_are_taken(tokens: int, merges: int, size: int, kind: str) -> None:
    """By their numbers; the merge is one of theirs repeated."""
    names: Any = ["a", "aa", *(f"token{number}" for number in range(tokens - 2))]
    vocabulary: Any = {name: number for number, name in enumerate(names)}
    if kind == "scores":
        vocabulary = [[name, -1.0] for name in names]
    merge = "a a" if kind == "text" else ["a", "a"]
    check_description({"model": {"vocab": vocabulary, "merges": [merge] * merges}}, size)


def text_value(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def test_merges_of_a_gguf_file_s_scores(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "</s>", *list(splits(15)[0])[1:]]
    count = len(tokens)
    scores = struct.pack(f"<{count}f", *(-float(number) for number in range(count)))
    types = struct.pack(f"<{count}i", 2, 3, 3, *[1] * (count - 3))
    listed = b"".join(map(text_value, tokens))
    values = {
        "general.architecture": struct.pack("<I", 8) + text_value("llama"),
        "tokenizer.ggml.model": struct.pack("<I", 8) + text_value("llama"),
        "tokenizer.ggml.tokens": struct.pack("<IIQ", 9, 8, count) + listed,
        "tokenizer.ggml.scores": struct.pack("<IIQ", 9, 6, count) + scores,
        "tokenizer.ggml.token_type": struct.pack("<IIQ", 9, 5, count) + types,
    }
    content = struct.pack("<4sIQQ", b"GGUF", 3, 0, len(values))
    path = tmp_path / "m.gguf"
    path.write_bytes(content + b"".join(text_value(key) + each for key, each in values.items()))
    ends_well(lambda: load_any_tokenizer(path), path)


@pytest.mark.parametrize("count", [290_000, 3_000_000])
@pytest.mark.parametrize("kind", ["gpt2", "gpt1", "gguf"])
def test_merges_in_files_of_their_own(tmp_path: Path, kind: str, count: int) -> None:
    names = [*byte_of_character(), "aa", "<unk>", "</w>", "a</w>", "aa</w>", "<|endoftext|>"]
    if kind == "gguf":
        path, last = tmp_path / "m.gguf", len(names) - 1
        listed = b"".join(map(text_value, names))
        values = {
            "tokenizer.ggml.model": struct.pack("<I", 8) + text_value("gpt2"),
            "tokenizer.ggml.tokens": struct.pack("<IIQ", 9, 8, len(names)) + listed,
            "tokenizer.ggml.merges": struct.pack("<IIQ", 9, 8, count) + text_value("a a") * count,
            "tokenizer.ggml.eos_token_id": struct.pack("<II", 4, last),
        }
        content = struct.pack("<4sIQQ", b"GGUF", 3, 0, len(values))
        path.write_bytes(content + b"".join(text_value(key) + each for key, each in values.items()))
        ends_well(lambda: load_any_tokenizer(path), path)
        return
    (tmp_path / "vocab.json").write_text(json.dumps({name: n for n, name in enumerate(names)}))
    text = "#version: 0.2\n" + "a a\n" * count + ("" if kind == "gpt2" else "a a</w>\n")
    (tmp_path / "merges.txt").write_text(text)
    ends_well(lambda: load_any_tokenizer(tmp_path), tmp_path)


def test_a_chat_format_begins_texts_with_few_tokens(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    load_any_tokenizer(tokenizer(tmp_path / "m")).save(folder)
    chat = json.loads((folder / "chat.json").read_text())
    (folder / "chat.json").write_text(json.dumps(chat | {"text_start": ["</s>"] * 1_000_000}))
    with pytest.raises(UserError, match="text_start has 1,000,000 tokens"):
        load_any_tokenizer(folder)


@pytest.mark.parametrize("kind", ["numbers", "tensors", "keys"])
def test_lists_of_a_gguf_file(tmp_path: Path, kind: str) -> None:
    count = 5_000_000
    values, tensors, content = 0, 0, b""
    if kind == "numbers":
        values = 1
        content = text_value("a") + struct.pack("<IIQ", 9, 2, count) + b"\x99\x01" * count
    elif kind == "tensors":
        tensors = 600_000
        content = b"".join(
            text_value(f"{number:x}") + struct.pack("<IIQ", 0, 0, 0) for number in range(tensors)
        )
    else:
        values = 1_000_000
        content = b"".join(
            text_value(f"{number:x}") + struct.pack("<IB", 0, 1) for number in range(values)
        )
    path = tmp_path / "m.gguf"
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, tensors, values) + content)
    ends_well(lambda: open_gguf(path), path)


@pytest.mark.parametrize(
    "table", [b"\0\0\0\xff\xff\xff\xff", b"\xff" * 64, b"", bytes(4), bytes(12)]
)
def test_a_table_of_characters_is_as_long_as_it_says(tmp_path: Path, table: bytes) -> None:
    step = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}
    folder = tokenizer(tmp_path / "m", normalizer=step)
    ends_well(lambda: use(folder, "héllo"), folder)


LONG = base64.b64encode(struct.pack("<I", 4) + bytes(4) + b"x" * 1000 + b"\0").decode()


@pytest.mark.parametrize(
    "step",
    [
        {"type": "Prepend", "prepend": "x" * 1_000_000},
        {"type": "Prepend", "prepend": "xy"},
        {"type": "Replace", "pattern": {"Regex": ""}, "content": "xy"},
        {"type": "Precompiled", "precompiled_charsmap": LONG},
        {"type": "ByteLevel"},
        {"type": "NFKC"},
        {"type": "Metaspace", "replacement": "x", "prepend_scheme": "always"},
        {"type": "BertNormalizer"},
    ],
)
def test_steps_do_not_make_texts_too_long(step: dict[str, Any]) -> None:
    for inner in ("normalizers", "pretokenizers"):
        with pytest.raises(UserError, match="too long"):
            text_growth({"type": "Sequence", inner: [step] * 20})


def test_steps_are_few() -> None:
    with pytest.raises(UserError, match="too slowly"):
        text_growth({"type": "Sequence", "normalizers": [{"type": "NFC"}] * 1000})
    nested: Any = {"type": "NFC"}
    for _ in range(10_000):
        nested = {"type": "Sequence", "normalizers": [nested]}
    with pytest.raises(UserError, match="too slowly"):
        text_growth(nested)


def test_the_steps_of_published_tokenizers_are_taken() -> None:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    table = base64.b64encode(struct.pack("<I", 4) + bytes(4) + b"x" * 18 + b"\0").decode()
    precompiled = {"type": "Precompiled", "precompiled_charsmap": table}
    spaces = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "▁"}
    text_growth({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]})
    text_growth(
        {"type": "Sequence", "normalizers": [precompiled, spaces]},
        {"type": "Metaspace", "replacement": "▁"},
    )
    cut = {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "Isolated"}
    text_growth(
        {"type": "NFKC"}, {"type": "Sequence", "pretokenizers": [cut, {"type": "ByteLevel"}]}
    )


@pytest.mark.parametrize(
    "values",
    [
        {"model": {"type": "Unigram", "vocab": [["</s>", 0.0], ["x" * 50_000, 1.0]], "unk_id": 0}},
        {"model": {"type": "WordPiece", "vocab": {"</s>": 1, "x": 0}, "unk_token": "</s>",
                   "continuing_subword_prefix": "##", "max_input_chars_per_word": 10_000}},
        {"added_tokens": [added(1, "</s>"), added(2, "x" * 3_000_000, normalized=True)],
         "normalizer": {"type": "Replace", "pattern": {"String": "x"}, "content": "y" * 200}},
        {"added_tokens": [added(1, "</s>"), *(added(n, f"{n}" + "x" * 900, normalized=True)
                                              for n in range(2, 2000))],
         "normalizer": {"type": "Replace", "pattern": {"String": "x"}, "content": "y" * 200}},
    ],
)  # fmt: skip
def test_long_tokens_do_not_take_long(tmp_path: Path, values: dict[str, Any]) -> None:
    folder = tokenizer(tmp_path / "m", **values)
    ends_well(lambda: use(folder, "x" * 60_000), folder)
