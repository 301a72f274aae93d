"""The formats that are damaged: whole files of each, how they are damaged, and who reads them."""

from __future__ import annotations

import functools
import json
import random
import shutil
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from fuzz import mutate
from lmsmith.catalogue.export import export, token_ids
from lmsmith.catalogue.reading import ReadModel, load_any_tokenizer, read_config, read_model
from lmsmith.catalogue.resolve import Source, advised_sampling, resolve
from lmsmith.core.config import encode, to_toml
from lmsmith.core.errors import UserError
from lmsmith.corpus.sources import conversations_of, documents_of, rankings_of
from lmsmith.evaluation.tasks import prompts, shipped
from lmsmith.evaluation.tasks.data import read_data
from lmsmith.feedback.imports import import_file
from lmsmith.feedback.store import open_store
from lmsmith.models.adapters import AdapterConfig, adapt
from lmsmith.models.config import ModelConfig, RopeScaling
from lmsmith.models.folder import save_model
from lmsmith.models.heads import ScalarModel
from lmsmith.models.interop.gguf_file import write_gguf
from lmsmith.models.interop.gguf_models import to_gguf
from lmsmith.stages.pipeline import load_stage_recipe, run_recipe
from lmsmith.tokenizers import Tokenizer
from tiny_models import TEXTS, random_decoder

Mutator = Callable[[bytes, random.Random], bytes]


@dataclass(frozen=True)
class Case:
    """Files of which some are damaged.

    Attributes:
        folder: holds them whole.
        damaged: how each of the files may be damaged, by its path in the folder.
        load: reads them, given the folder.
        together: how many mutations one child reads: where it takes long to begin.
    """

    folder: Path
    damaged: dict[str, Mutator]
    load: Callable[[Path], object]
    together: int = 1

    @property
    def size(self) -> int:
        return sum(each.stat().st_size for each in self.folder.rglob("*") if each.is_file())


TEXT = "Hello there, how are you? 12,345 é🙂\n\n  the cat sat on <|endoftext|> </s>."
TALK = [{"role": "user", "content": "Hello there."}]


def use_tokenizer(tokenizer: Tokenizer) -> list[int]:
    """Every way in which a tokenizer is used."""
    ids = tokenizer.encode(TEXT)
    tokenizer.decode(ids, special=True)
    tokenizer.encode_batch([TEXT, ""])
    assert tokenizer.utf8 is not None
    if not tokenizer.is_own:
        tokenizer.encode_chat(TALK, ask=True)
    return ids


def use_model(path: Path) -> None:
    """Read a model and write with it."""
    source = resolve(path)
    shape = read_config(source)
    assert shape.parameters + shape.training_flops_per_token() > 0
    found = read_model(source)
    advised_sampling(source)
    _write(found)


def _write(found: ReadModel) -> None:
    ids = use_tokenizer(found.tokenizer)
    config = found.decoder.config
    tokens = [token for token in ids if token < config.vocabulary_size][: min(8, config.context)]
    with torch.no_grad():
        found.decoder.logits(found.decoder(torch.tensor([tokens or [0]])))


@functools.cache
def own_tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


SMALL = ModelConfig(2, 32, 4, 64, 0)
LLAMA = ModelConfig(
    2, 32, 4, 64, 0, kv_heads=2, norm="rms", positions="rotary", activation="swiglu",
    qkv_bias=False, attention_output_bias=False, ffn_bias=False,
)  # fmt: skip


def shaped(config: ModelConfig, **changes: Any) -> Any:
    from dataclasses import replace

    size = {"vocabulary_size": own_tokenizer().vocabulary_size}
    return random_decoder(replace(config, **(size | changes)))


def read_of(decoder: Any, tokenizer: Tokenizer | None = None) -> ReadModel:
    source = Source("lmsmith", Path("nowhere"), "tiny")
    return ReadModel(decoder, tokenizer or own_tokenizer(), source, {})


SCALINGS = {
    "linear": RopeScaling("linear", 2.0),
    "dynamic": RopeScaling("dynamic", 2.0, 32),
    "llama3": RopeScaling("llama3", 8.0, 32),
    "yarn": RopeScaling("yarn", 2.0, 32),
}


def hugging_face_folders(root: Path) -> Iterator[Path]:
    """A model of each family, and rotary positions of each kind."""
    decoders_ = {
        "gpt2": shaped(SMALL),
        "llama": shaped(LLAMA, tied_embeddings=False),
        "neo": shaped(
            SMALL, attention_pattern=("dense", "banded"), window=5, qkv_bias=False, dropout=0.0
        ),
        **{name: shaped(LLAMA, rope_scaling=each) for name, each in SCALINGS.items()},
    }
    for name, decoder in decoders_.items():
        try:
            yield export(read_of(decoder), root / name, "hf").path
        except UserError:
            continue  # transformers has no such model


def gguf_files(root: Path) -> Iterator[Path]:
    for name, decoder in (
        ("gpt2", shaped(SMALL)),
        ("llama", shaped(LLAMA)),
        ("llama3", shaped(LLAMA, rope_scaling=SCALINGS["llama3"])),
        ("yarn", shaped(LLAMA, rope_scaling=SCALINGS["yarn"])),
    ):
        for kind in ("q8_0", "f16"):
            yield export(read_of(decoder), root / f"{name}-{kind}.gguf", "gguf", kind).path
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *"▁helo", "he", "hell"]
    architecture, metadata, tensors = to_gguf(*_state(shaped(LLAMA, vocabulary_size=len(tokens))))
    vocabulary = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(n) for n in range(len(tokens))],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (len(tokens) - 259)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}"
        "{{ eos_token }}{% endfor %}",
    }
    path = root / "pieces.gguf"
    write_gguf(path, architecture, metadata | vocabulary, tensors, "f16")
    yield path


def _state(decoder: Any) -> tuple[ModelConfig, Any]:
    return decoder.config, decoder.state_dict()


def own_folders(root: Path) -> Iterator[Path]:
    """A decoder, a reward model and adapters on the decoder."""
    decoder = shaped(SMALL)
    save_model(root / "base", decoder, own_tokenizer(), {})
    yield root / "base"
    save_model(root / "rotary", shaped(LLAMA), own_tokenizer(), {})
    yield root / "rotary"
    save_model(root / "scalar", ScalarModel(shaped(SMALL)), own_tokenizer(), {})
    yield root / "scalar"
    settings = AdapterConfig(rank=2)
    adapt(decoder, settings, torch.float32, 0)
    save_model(root / "adapted", decoder, own_tokenizer(), {}, settings, root / "base")
    yield root / "adapted"


def use_own(folder: Path) -> None:
    from lmsmith.models.folder import load_scalar_model

    content = (folder / "config.json").read_bytes()
    if b'"scalar"' in content:
        with torch.no_grad():
            load_scalar_model(folder)(torch.tensor([[1, 2, 3]]))
    else:
        use_model(folder)


def foreign_tokenizers(root: Path) -> Iterator[Path]:
    """Byte-level BPE, SentencePiece's two kinds, and WordPiece, as Hugging Face keeps them."""
    letters = [chr(n) for n in range(33, 127)]
    unigram = tokenizers.Tokenizer(
        models.Unigram(
            [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), *((c, -5.0) for c in letters)], 0
        )
    )
    unigram.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("``", '"')])
    unigram.pre_tokenizer = pre_tokenizers.Metaspace()
    unigram.decoder = decoders.Metaspace()
    piece = tokenizers.Tokenizer(
        models.BPE(
            {t: n for n, t in enumerate(["<unk>", "</s>", "▁", *letters, "he", "▁he"])},
            [("h", "e"), ("▁", "he")], unk_token="<unk>",
        )
    )  # fmt: skip
    piece.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    piece.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    word = tokenizers.Tokenizer(
        models.WordPiece(
            {t: n for n, t in enumerate(["[UNK]", "</s>", *letters, *(f"##{c}" for c in letters)])},
            unk_token="[UNK]",
        )
    )
    word.normalizer = normalizers.BertNormalizer()
    word.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    word.decoder = decoders.WordPiece()
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token }}{% endfor %}"
    for name, backend in (("unigram", unigram), ("piece", piece), ("word", word)):
        backend.add_special_tokens(["</s>"])
        backend.post_processor = processors.TemplateProcessing(
            single="</s> $A", special_tokens=[("</s>", backend.token_to_id("</s>"))]
        )
        folder = root / name
        folder.mkdir(parents=True)
        backend.save(str(folder / "tokenizer.json"))
        config = {"eos_token": "</s>", "bos_token": "</s>", "chat_template": template}
        config |= {"added_tokens_decoder": {"1": {"content": "</s>", "special": True}}}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "</s>"}}')
        (folder / "generation_config.json").write_text('{"eos_token_id": [1]}')
        yield folder
    byte_level = root / "bytes"
    write = export(read_of(shaped(SMALL)), byte_level, "hf").path
    for each in ("model.safetensors", "config.json"):
        (write / each).unlink()
    yield write


def mutable(folder: Path, names: dict[str, Mutator], load: Callable[[Path], object]) -> Case:
    """A case of those of the files that are in the folder."""
    return Case(folder, {n: m for n, m in names.items() if (folder / n).is_file()}, load)


def gguf(root: Path) -> list[Case]:
    cases = []
    for file in gguf_files(root / "made"):
        folder = root / file.stem
        folder.mkdir()
        shutil.move(file, folder / "model.gguf")
        cases.append(
            Case(folder, {"model.gguf": mutate.gguf_bytes}, lambda at: use_model(at / "model.gguf"))
        )
    return cases


def safetensors(root: Path) -> list[Case]:
    weights: dict[str, Mutator] = {
        "model.safetensors": mutate.safetensors_bytes,
        "adapter.safetensors": mutate.safetensors_bytes,
    }
    hf = [mutable(each, weights, use_model) for each in hugging_face_folders(root / "hf")]
    return hf + _own(root, weights)


def _own(root: Path, names: dict[str, Mutator]) -> list[Case]:
    """Adapters lie beside their base, so the case is of the folder above."""
    found = []
    for each in own_folders(root / "own"):
        below = {f"{each.name}/{name}": mutator for name, mutator in names.items()}
        load = functools.partial(_use_below, each.name)
        found.append(mutable(each.parent, below, load))
    return found


def _use_below(name: str, folder: Path) -> None:
    use_own(folder / name)


def config_json(root: Path) -> list[Case]:
    names: dict[str, Mutator] = {
        "config.json": mutate.json_bytes,
        "generation_config.json": mutate.json_bytes,
    }
    hf = [mutable(each, names, use_model) for each in hugging_face_folders(root / "hf")]
    parts = root / "parts"
    decoder = shaped(LLAMA)
    whole = export(read_of(decoder), parts, "hf").path
    _split(whole)
    hf.append(mutable(whole, {"model.safetensors.index.json": mutate.json_bytes}, use_model))
    return hf + _own(root, {"config.json": mutate.json_bytes, "card.json": mutate.json_bytes})


def _split(folder: Path) -> None:
    """Put a model's weights into two files with an index."""
    from safetensors.torch import load_file, save_file

    whole = load_file(folder / "model.safetensors")
    names = sorted(whole)
    places = {name: f"part-{n % 2}.safetensors" for n, name in enumerate(names)}
    for file in sorted(set(places.values())):
        part = {name: whole[name] for name in names if places[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def tokenizer_json(root: Path) -> list[Case]:
    names: dict[str, Mutator] = {
        "tokenizer.json": mutate.json_bytes,
        "tokenizer_config.json": mutate.json_bytes,
        "special_tokens_map.json": mutate.json_bytes,
        "generation_config.json": mutate.json_bytes,
        "chat_template.jinja": mutate.flipped,
    }
    cases = [mutable(each, names, _use_tokenizer) for each in foreign_tokenizers(root / "hf")]
    own_tokenizer().save(root / "own")
    load_any_tokenizer(cases[0].folder).save(root / "imported")
    ours: dict[str, Mutator] = {"tokenizer.json": mutate.json_bytes, "chat.json": mutate.json_bytes}
    return cases + [mutable(root / each, ours, _use_tokenizer) for each in ("own", "imported")]


def _use_tokenizer(folder: Path) -> None:
    tokenizer = load_any_tokenizer(folder)
    use_tokenizer(tokenizer)
    assert token_ids(tokenizer)


def recipe(root: Path) -> list[Case]:
    """The shipped recipes with data, and a model to begin with, of their own."""
    from lmsmith.core.recipe import shipped_recipes

    root.mkdir(parents=True, exist_ok=True)
    base = root / "base"
    save_model(base, shaped(SMALL), own_tokenizer(), {})
    cases = []
    for name, text in shipped_recipes().items():
        tree = tomllib.loads(text)
        if not {"data", "translate"} & set(tree):
            continue  # it reads labelled tasks, which it has not here
        own = {"conversations": ["my.jsonl"], "documents": ["my.jsonl"], "rankings": ["my.jsonl"]}
        own |= {"source": "my.jsonl", "target": "my.jsonl"}
        for table in (tree[each] for each in ("data", "translate") if each in tree):
            table |= {key: value for key, value in own.items() if key in table}
        if "base" in tree:
            tree["base"] = {"model": str(base)}
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "my.toml").write_text(to_toml(tree))
        (folder / "my.jsonl").write_text("{}")
        cases.append(Case(folder, {"my.toml": mutate.toml_bytes}, _use_recipe))
    return cases


def _use_recipe(folder: Path) -> None:
    loaded = load_stage_recipe(folder / "my.toml", ["seed=1"])
    run_recipe(loaded, folder / "run", dry_run=True)


def task(root: Path) -> list[Case]:
    rows = {
        "choices.jsonl": [
            {"question": f"What is {n}?", "choices": ["one", "two", "three"], "answer": n % 3}
            for n in range(5)
        ],
        "answers.jsonl": [{"question": f"Name {n}", "answer": f"{n} cats"} for n in range(5)],
        "texts.jsonl": [{"text": f"The cat of house {n} sat."} for n in range(5)],
    }
    cases = []
    for name, lines in rows.items():
        folder = root / Path(name).stem
        folder.mkdir(parents=True)
        (folder / "my.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        cases.append(Case(folder, {"my.jsonl": mutate.jsonl_bytes}, _use_rows))
        table = encode(shipped.find_tasks([str(folder / "my.jsonl")])[0])
        table |= {"data": {"file": "my.jsonl"}, "variants": {"a": {}, "b": {"shots": 1}}}
        cases.append(_task_case(root / f"{Path(name).stem}-task", table, lines))
    known = shipped.shipped_tasks()
    for name in ("arithmetic/2d_plus", "hindsight", "refusal/harmful"):
        table = encode(known[name]) | {"name": "mine"}
        cases.append(_task_case(root / name.replace("/", "-"), table, []))
    prompt = {"pattern": "{{ a }} It was ____.", "label": "b", "words": {"0": "bad", "1": "good"}}
    row = {"paper": "p", "model": "m", "parameters": 1.5, "measure": "a", "value": 0.5}
    pattern = {"name": "pattern", "kind": "multiple_choice", "data": {"file": "my.jsonl"}}
    pattern |= {"shots": 1, "prompt": prompt, "published": [row]}
    answer = {"extract": "is (.*)", "stop": ["a"], "normalise": "text"}
    parts = {"context": "Break up: {{ a }}", "last": "Q: {{ a }}", "most": 3}
    broken = {"name": "broken", "kind": "free_form", "data": {"file": "my.jsonl"}, "answer": answer}
    broken |= {"prompt": {"context": "{{ a }}", "target": "{{ b }}"}, "decompose": parts}
    lines = [{"a": f"{n}", "b": n % 2} for n in range(4)]
    cases += [_task_case(root / each["name"], each, lines) for each in (pattern, broken)]
    return cases


def _task_case(folder: Path, table: dict[str, Any], rows: list[dict[str, Any]]) -> Case:
    folder.mkdir(parents=True)
    (folder / "my.toml").write_text(to_toml(table))
    (folder / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Case(folder, {"my.toml": mutate.toml_bytes}, _use_task)


def _use_rows(folder: Path) -> None:
    _use_tasks(shipped.find_tasks([str(folder / "my.jsonl")]), folder)


def _use_task(folder: Path) -> None:
    _use_tasks(shipped.find_tasks([str(folder / "my.toml")]), folder)


def _use_tasks(tasks: list[Any], folder: Path) -> None:
    from lmsmith.cli.tasks import answer_rules

    for each in tasks[:3]:
        read = read_data(each, [folder], 0)
        assert answer_rules(each)
        for item in read.items[:3]:
            count = each.shown_shots(min(each.shots, 4))
            drawn = prompts.draw_shots(read.pool, item, count, 0)
            assert prompts.with_shots(each, item, drawn).pairs


def data(root: Path) -> list[Case]:
    """Conversations, rankings and documents, of lmsmith and of other programs."""
    talk = [*TALK, {"role": "assistant", "content": "Hi!"}]
    rows: dict[str, Any] = {
        "conversations": {"messages": talk, "id": "a", "source": "mine"},
        "sharegpt": {
            "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
        },
        "alpaca": {"instruction": "Say a.", "input": "", "output": "a"},
        "rankings": {"prompt": TALK, "responses": ["a", "b", "c"], "ranks": [1, 2, 2]},
        "pairs": {"prompt": "Hello", "chosen": "a", "rejected": "b", "weight": 1.5},
        "tree": {
            "message_tree_id": "1",
            "prompt": {
                "message_id": "1", "text": "Hello", "role": "prompter", "lang": "en",
                "replies": [
                    {"message_id": str(n), "text": f"{n}", "role": "assistant", "rank": n,
                     "replies": []}
                    for n in range(3)
                ],
            },
        },
        "studio": {
            "id": 1,
            "data": {"prompt": "Hello", "answer1": "a", "answer2": "b"},
            "annotations": [
                {
                    "id": 1, "completed_by": 3,
                    "result": [
                        {"type": "pairwise", "from_name": "pw", "to_name": "answer1,answer2",
                         "value": {"selected": "left"}}
                    ],
                }
            ],
        },
        "argilla": {
            "id": "1", "fields": {"prompt": "Hello", "response_1": "a", "response_2": "b"},
            "responses": {"preference": [{"user_id": "u", "value": "response_1"}]},
        },
        "documents": {"text": "The cat sat.", "id": "1", "source": "mine"},
    }  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    with open_store(str(root / "empty.db"), new=True):
        pass
    cases = []
    for name, row in rows.items():
        folder = root / name
        folder.mkdir()
        (folder / "my.jsonl").write_text((json.dumps(row) + "\n") * 3)
        load = functools.partial(_use_data, root / "empty.db")
        cases.append(Case(folder, {"my.jsonl": mutate.jsonl_bytes}, load))
    return cases


def _use_data(empty: Path, folder: Path) -> None:
    """Read it as every kind of data, and into a database; it must be of one kind or more."""
    file, refused, read = folder / "my.jsonl", [], 0
    for rows in (conversations_of, rankings_of, documents_of, _import(empty, folder / "my.db")):
        try:
            read += len(list(islice(rows(str(file)), 1000)))
        except UserError as error:
            refused.append(error)
    if not read:
        raise refused[-1]


def _import(empty: Path, database: Path) -> Callable[[str], Iterator[object]]:
    def rows(file: str) -> Iterator[object]:
        shutil.copy(empty, database)
        with open_store(str(database)) as store:
            yield import_file(store, Path(file), person=store.person("me").id)

    return rows


def api(root: Path) -> list[Case]:
    """All bodies in one case, for a server takes long to start; some of them are damaged."""
    from fuzz.bodies import BODIES, prepare, send

    prepare(root)
    folder = root / "bodies"
    folder.mkdir()
    damaged: dict[str, Mutator] = {}
    for number, (_, _, body) in enumerate(BODIES):
        (folder / f"{number:02}.json").write_text(json.dumps(body))
        damaged[f"{number:02}.json"] = mutate.json_bytes
    return [Case(folder, damaged, functools.partial(send, root), together=len(BODIES))]


FORMATS: dict[str, Callable[[Path], list[Case]]] = {
    "gguf": gguf,
    "safetensors": safetensors,
    "tokenizer": tokenizer_json,
    "config": config_json,
    "recipe": recipe,
    "task": task,
    "data": data,
    "api": api,
}
