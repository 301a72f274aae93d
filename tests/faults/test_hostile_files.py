"""Files that were made to harm: each is one message, before memory or time is taken."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsmith.catalogue.export import export
from lmsmith.catalogue.reading import ReadModel, load_any_tokenizer, read_config, read_model
from lmsmith.catalogue.resolve import Source, resolve
from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json, read_jsonl, read_text
from lmsmith.corpus.shards import TokenShards, write_shards
from lmsmith.evaluation.tasks.data import find_file
from lmsmith.evaluation.tasks.spec import read_tasks
from lmsmith.models import weights_file
from lmsmith.models.adapters import AdapterConfig, adapt
from lmsmith.models.config import MOST_LAYERS, ModelConfig, RopeScaling
from lmsmith.models.folder import load_model, save_model
from lmsmith.models.interop.gguf_file import open_gguf
from lmsmith.stages.pipeline import load_stage_recipe
from lmsmith.tokenizers import Tokenizer
from tiny_models import TEXTS, random_decoder

TOKENIZER = Tokenizer.train(TEXTS, 300)
SMALL = ModelConfig(2, 16, 2, 32, TOKENIZER.vocabulary_size)
LLAMA = replace(
    SMALL, norm="rms", positions="rotary", activation="swiglu",
    qkv_bias=False, attention_output_bias=False, ffn_bias=False,
)  # fmt: skip


def own(folder: Path, config: ModelConfig = SMALL) -> Path:
    save_model(folder, random_decoder(config), TOKENIZER, {})
    return folder


def exported(folder: Path, to: str, config: ModelConfig = LLAMA) -> Path:
    source = Source("lmsmith", Path("nowhere"), "tiny")
    return export(ReadModel(random_decoder(config), TOKENIZER, source, {}), folder, to).path


def change(path: Path, value: Callable[[Any], Any]) -> None:
    """Put another value into a JSON file."""
    path.write_text(json.dumps(value(json.loads(path.read_text(encoding="utf-8")))))


@pytest.mark.parametrize("layers", [10**5, 2**31, 10**18, 1000])
@pytest.mark.parametrize("kind", ["own", "hf"])
def test_a_number_of_layers_is_that_of_the_weights(tmp_path: Path, kind: str, layers: int) -> None:
    folder = own(tmp_path / "m") if kind == "own" else exported(tmp_path / "m", "hf")
    names = {"own": "layers", "hf": "num_hidden_layers"}

    def more(config: Any) -> Any:
        (config["model"] if kind == "own" else config)[names[kind]] = layers
        return config

    change(folder / "config.json", more)
    with pytest.raises(UserError, match="layers"):
        read_model(folder)
    if layers > MOST_LAYERS:
        with pytest.raises(UserError, match="layers"):
            read_config(resolve(folder))


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": 2**40},
        {"attention_bias": "yes"},
        {"tie_word_embeddings": 2},
        {"head_dim": 2**30},
        {"vocab_size": 2**31},
        {"intermediate_size": 2**31},
        {"num_attention_heads": 10**9},
        {"num_attention_heads": 0},
        {"num_key_value_heads": 2**20},
        {"rms_norm_eps": 1e400},
        {"rope_theta": 1.0, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "dynamic", "factor": 1e308}},
        {"rope_scaling": {"rope_type": ["yarn"]}},
        {"architectures": 5},
        {"layer_types": [[]]},
        {"layer_types": 7},
        {"model_type": "gpt_neo", "attention_types": [[["global"], 10**12]], "num_layers": 2},
        {"model_type": "gpt_neo", "attention_types": [[[], 10**18]], "num_layers": 2},
    ],
)
def test_sizes_are_those_of_the_weights(tmp_path: Path, values: dict[str, Any]) -> None:
    folder = exported(tmp_path / "m", "hf")
    change(folder / "config.json", lambda config: config | values)
    with pytest.raises(UserError):
        read_model(folder)


@pytest.mark.parametrize("places", [5, [], {"a": 5}, {"a": []}, {"a": "../b"}, {"a": "/dev/zero"}])
def test_an_index_of_another_kind(tmp_path: Path, places: Any) -> None:
    folder = exported(tmp_path / "m", "hf")
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    with pytest.raises(UserError, match="fetch"):
        read_model(folder)


@pytest.mark.parametrize("kind", [[], {}, 5, None, "other"])
def test_a_kind_of_another_type(tmp_path: Path, kind: Any) -> None:
    folder = own(tmp_path / "m")
    change(folder / "config.json", lambda config: config | {"kind": kind})
    with pytest.raises(UserError, match="not an lmsmith model"):
        load_model(folder)


def test_weights_of_too_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_file, "MOST_TENSORS", 10)
    for folder in (own(tmp_path / "own"), exported(tmp_path / "hf", "hf")):
        with pytest.raises(UserError, match="more tensors than any model has"):
            read_model(folder)


@pytest.mark.parametrize("name", ["tokens.npy", "offsets.npy"])
@pytest.mark.parametrize("length", [10**9, 10**15, 2])
def test_lengths_of_shards_are_those_of_their_files(tmp_path: Path, name: str, length: int) -> None:
    write_shards(tmp_path / "a", [[1, 2], [3]], 0, 300)
    path = tmp_path / "a" / name
    content = path.read_bytes()
    at, end = content.index(b"(") + 1, content.index(b",)")
    number = str(length).encode()
    pad = content.index(b"\n")
    head = content[:at] + number + content[end:pad].rstrip()
    path.write_bytes(head + b" " * (pad - len(head)) + content[pad:])
    with pytest.raises(UserError, match="token shards"):
        TokenShards.load(tmp_path / "a")


# Adapters


def adapted(root: Path) -> Path:
    """Adapters on a model."""
    model, settings = random_decoder(SMALL), AdapterConfig(rank=2)
    save_model(root / "base", model, TOKENIZER, {})
    adapt(model, settings, torch.float32, 0)
    save_model(root / "adapters", model, TOKENIZER, {}, settings, root / "base")
    return root / "adapters"


@pytest.mark.parametrize(
    "values",
    [
        {"base": "."},
        {"base": "../adapters"},
        {"base": "../other"},
        {"base": "a" * 10_000},
        {"base": "loop"},
        {"base": 5},
        {"base": "\x00"},
        {"rank": 0},
        {"rank": 10**9},
        {"rank": 10**30},
        {"alpha": 0},
        {"parts": "attention"},
    ],
)
def test_adapters_that_stand_on_nothing(tmp_path: Path, values: dict[str, Any]) -> None:
    folder = adapted(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    change(other / "config.json", lambda config: config | {
        "adapter": config["adapter"] | {"base": "../adapters"}})  # fmt: skip
    (folder / "loop").symlink_to(folder / "loop")
    change(folder / "config.json", lambda config: config | {"adapter": config["adapter"] | values})
    with pytest.raises(UserError):
        load_model(folder)


@pytest.mark.parametrize("adapter", [5, [], "a", {}])
def test_adapters_of_another_kind(tmp_path: Path, adapter: Any) -> None:
    folder = adapted(tmp_path)
    change(folder / "config.json", lambda config: config | {"adapter": adapter})
    with pytest.raises(UserError):
        load_model(folder)


# Tokenizers


@pytest.mark.parametrize("token", [2**31, 2**32, 10**9, -1, 1.5, True, "1", None])
@pytest.mark.parametrize("where", ["vocab", "added"])
def test_an_id_is_bounded_by_the_tokens(tmp_path: Path, where: str, token: Any) -> None:
    folder = exported(tmp_path / "m", "hf")

    def other(found: Any) -> Any:
        if where == "vocab":
            found["model"]["vocab"]["zzz"] = token
        else:
            found["added_tokens"].append({"id": token, "content": "<z>", "special": True})
        return found

    change(folder / "tokenizer.json", other)
    with pytest.raises(UserError, match="tokenizer"):
        load_any_tokenizer(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"added_tokens": [5]},
        {"added_tokens": {"a": 1}},
        {"model": []},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a"]]}},
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"] * 1000}},
        {"model": {"type": "Unigram", "vocab": [["a", "b"]], "unk_id": 9}},
        {"model": {"type": "WordPiece", "vocab": {}, "max_input_chars_per_word": 10**9}},
        {"normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10}] * 12}},
        {"decoder": []},
        {"decoder": {"type": "Sequence", "decoders": [5]}},
        {"post_processor": {"type": "TemplateProcessing", "single": 5}},
        {"post_processor": {"processors": 3}},
    ],
)  # fmt: skip
def test_tokenizers_of_another_kind(tmp_path: Path, values: dict[str, Any]) -> None:
    folder = exported(tmp_path / "m", "hf")
    change(folder / "tokenizer.json", lambda found: found | values)
    with pytest.raises(UserError):
        load_any_tokenizer(folder)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize(
    "values",
    [
        {"added_tokens_decoder": 5},
        {"added_tokens_decoder": {"0": 5}},
        {"chat_template": [5]},
        {"additional_special_tokens": 5},
        {"extra_special_tokens": [[]]},
    ],
)
def test_files_beside_a_tokenizer(tmp_path: Path, file: str, values: dict[str, Any]) -> None:
    folder = exported(tmp_path / "m", "hf")
    (folder / "chat_template.jinja").unlink()
    change(folder / file, lambda found: found | values)
    with contextlib.suppress(UserError):  # some of them say nothing that is needed
        load_any_tokenizer(folder)


def test_a_template_without_end_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmsmith.tokenizers import template

    monkeypatch.setattr(template, "SECONDS", 1.0)
    folder = exported(tmp_path / "m", "hf")
    loop = "{% for a in range(99999) %}" * 4 + "{% endfor %}" * 4
    (folder / "chat_template.jinja").write_text(loop)
    with pytest.raises(UserError, match="did not end"):
        load_any_tokenizer(folder)


# GGUF


def gguf(values: dict[str, tuple[int, bytes]], tensors: bytes = b"", count: int = 0) -> bytes:
    """A file of these values: type and content by key."""
    content = struct.pack("<4sIQQ", b"GGUF", 3, count, len(values))
    for key, (kind, packed) in values.items():
        content += struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + packed
    return content + tensors


def tensor(name: str, shape: list[int], kind: int, offset: int) -> bytes:
    content = struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", len(shape))
    return content + struct.pack(f"<{len(shape)}QIQ", *shape, kind, offset)


NESTED = struct.pack("<IQ", 9, 1) * 100_000 + struct.pack("<IQI", 4, 1, 1)
SHARED = b"".join(tensor(f"t{n}", [1024], 0, 0) for n in range(1000)) + bytes(8192)


@pytest.mark.parametrize(
    "content",
    [
        gguf({"a": (9, NESTED)}),
        gguf({"a": (9, struct.pack("<IQ", 4, 2**62))}),
        gguf({"a": (9, struct.pack("<IQ", 8, 2**62))}),
        gguf({"a": (9, struct.pack("<IQ", 0, 2**24) + bytes(2**24))}),
        gguf({"a": (8, struct.pack("<Q", 2**63))}),
        gguf({}, tensor("t", [2**40], 0, 0), 1),
        gguf({}, tensor("t", [2**63, 2**63], 0, 0), 1),
        gguf({}, tensor("t", [4], 0, 2**63), 1),
        gguf({}, tensor("t", [4], 0, 0) * 2 + bytes(64), 2),
        gguf({}, SHARED, 1000),
        gguf({}, b"", 2**60),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60),
    ],
)
def test_numbers_of_a_gguf_file_are_bounded_by_its_size(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged or cut off"):
        open_gguf(path)


@pytest.mark.parametrize(
    ("key", "number"),
    [
        ("block_count", 10**5),
        ("block_count", 0),
        ("attention.head_count", 0),
        ("attention.head_count_kv", 0),
        ("attention.head_count_kv", 3),
        ("attention.key_length", 2**31),
        ("embedding_length", 2**31),
        ("feed_forward_length", 2**31),
        ("context_length", 0),
    ],
)
@pytest.mark.parametrize("scaled", [False, True])
def test_sizes_in_a_gguf_file_are_those_of_its_tensors(
    tmp_path: Path, key: str, number: int, scaled: bool
) -> None:
    scaling = RopeScaling("llama3", 8.0, 16) if scaled else RopeScaling()
    path = exported(tmp_path / "m.gguf", "gguf", replace(LLAMA, rope_scaling=scaling))
    content = path.read_bytes()
    at = content.index(f"llama.{key}".encode()) + len(f"llama.{key}") + 4
    path.write_bytes(content[:at] + struct.pack("<I", number) + content[at + 4 :])
    for read in (read_model, lambda each: read_config(resolve(each))):
        try:
            with pytest.raises(UserError):
                read(path)
        except pytest.fail.Exception:
            assert read is not read_model, "weights of other sizes were read"


# Files that are none


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "m.gguf"])
@pytest.mark.parametrize("kind", ["pipe", "device", "circle", "folder", "sparse"])
def test_what_is_no_file(tmp_path: Path, name: str, kind: str) -> None:
    folder = own(tmp_path / "m")
    if name == "m.gguf":
        folder = tmp_path / "gguf"
        folder.mkdir()
    place = folder / name
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "device":
        place.symlink_to("/dev/zero")
    elif kind == "circle":
        place.symlink_to(place)
    elif kind == "folder":
        place.mkdir()
    else:
        with place.open("wb") as file:
            file.truncate(200 << 30)
    for path in (folder, place):
        with pytest.raises(UserError):
            read_model(path)


def test_a_packed_file_is_not_unpacked_without_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmsmith.core import files

    monkeypatch.setattr(files, "_ALWAYS_UNPACKED", 1 << 20)
    bomb = tmp_path / "a.jsonl.gz"
    with gzip.open(bomb, "wb") as file:
        for _ in range(8):
            file.write(bytes(1 << 20))
    for read in (read_text, lambda path: list(read_jsonl(path))):
        with pytest.raises(UserError, match="unpacks to more than"):
            read(bomb)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "NaN", "\x00"])
def test_json_without_sense(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with contextlib.suppress(UserError):  # other libraries read some of them
        read_json(path)


# Recipes and tasks


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 5000,
        "x = " + "{a=" * 5000,
        "x = " + "9" * 5000,
        "a." * 100_000 + "a = 1",
        "[" + "a." * 100_000 + "a]",
        "\n".join(f"{'a.' * 100}a{n} = 1" for n in range(100)),
        "x = 1979-05-27\n[data]\nseed = 1979-05-27T07:32:00Z",
        "data = 5",
        "[data]\nconversations = [5]",
        f'[data]\nconversations = ["{"a" * 5000}"]',
        "[pretrain]\nmodel = 5",
        "[pretrain.model]\nlayers = 100000",
        "#" * (2 << 20),
        "",
    ],
)
def test_recipes_without_sense(tmp_path: Path, text: str) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text)
    with pytest.raises(UserError):
        load_stage_recipe(path)


FREE_FORM = """
kind = "free_form"
data = { file = "a.jsonl" }
prompt = { context = "{{ q }}", target = "{{ a }}" }
"""


@pytest.mark.parametrize(
    "text",
    [
        "variants = 5",
        "[variants]\na = 5",
        "published = 5",
        "published = [5]",
        "name = 5",
        "kind = []",
        "[prompt]\nwords = 5",
        f'kind = "free_form"\n[answer]\nextract = "{"(" * 9000}"',
        'kind = "free_form"\n[answer]\nextract = "a{99999999999999999999}"',
        'name = "a"\nkind = "perplexity"\n[data]\ngenerator = "hindsight"\ncount = 1000000000000',
        f"{FREE_FORM}[answer]\nsearch = 'sample'\nsamples = 1000000000",
        f"{FREE_FORM}[answer]\nstop = {['a' * 4000]}",
        f"{FREE_FORM}[answer]\nstop = {[str(n) for n in range(9999)]}",
        f"{FREE_FORM}[answer]\nextract = '(?i)({'[a-😀]' * 9999})'",
        f"{FREE_FORM}[rating]\nlabels = {[str(n) for n in range(9999)]}",
        f"{FREE_FORM}[decompose]\nmost = 1000000000",
        f"{FREE_FORM}{''.join(f'[variants.a{n}]{chr(10)}' for n in range(2000))}",
        'kind = "perplexity"\n[data]\nfile = "a.txt"\noverlap = 0.999999999',
    ],
)
def test_tasks_without_sense(text: str) -> None:
    with pytest.raises(UserError):
        read_tasks(text, "my.toml")
    assert read_tasks(FREE_FORM, "my.toml")


def test_a_task_s_file_of_a_name_that_no_file_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not in any of"):
        find_file("my.jsonl" * 500, [tmp_path])
