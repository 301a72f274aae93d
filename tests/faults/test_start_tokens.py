"""What goes before a text prompt: one rule in every command, as the tokenizer's files say.

The oracle is transformers: the same ids and the same greedy text for 20 raw prompts.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsmith.catalogue.export import export
from lmsmith.catalogue.reading import ReadModel, read_model
from lmsmith.core.recipe import MachineConfig
from lmsmith.evaluation.functions import TextFunction, extraction
from lmsmith.evaluation.model import make_evaluated_model
from lmsmith.library import LanguageModel, load
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.prompts.chat import encode_text_prompts
from lmsmith.stages.pretrain import tokenize_sources
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import resolve_machine

transformers = pytest.importorskip("transformers")

PROMPTS = [
    "hello there",
    "Water boils at",
    "Question: what is it? Answer:",
    " leading space",
    "trailing space ",
    "def add(a, b):\n",
    "    return a",
    "你好",
    "🙂 42 -5 3.5",
    "hello there, how are you? I am well, thank you.",
    "user assistant system",
    "a",
    "it is a dog.\n\n",
    "\n",
    "what is it",
    "thank you",
    "return a + b",
    "I am",
    "Answer: it",
    "well, well, well",
]
BEGINS = {"bos_config": True, "bos_processor": True, "no_bos": False, "spm": True}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as it is made here, with random weights."""
    folder = tmp_path_factory.mktemp("own") / "model"
    tokenizer = Tokenizer.train([*PROMPTS, "hello there, how are you?"] * 4, 400)
    decoder = Decoder(ModelConfig(2, 32, 2, 128, tokenizer.vocabulary_size)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            mean = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.copy_(mean + 0.2 * torch.randn(parameter.shape, generator=generator))
    save_model(folder, decoder, tokenizer, {})
    return folder


FP32 = MachineConfig(precision="fp32")
"""The oracle computes in float32."""


def greedy(model: LanguageModel, prompt: str, count: int) -> str:
    return model.generate(prompt, max_new_tokens=count, temperature=0)


def agrees(model: LanguageModel, folder: Path, *, adds_start: bool | None = None) -> None:
    """Ids and greedy texts of transformers, which reads ``folder``.

    Args:
        adds_start: ``add_bos_token``, which version 5 of transformers no longer reads.
    """
    oracle = transformers.AutoTokenizer.from_pretrained(folder)
    if adds_start is not None:
        oracle.add_bos_token = adds_start
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
    ends = list(model.tokenizer.stop_tokens)
    for prompt in PROMPTS:
        ids = oracle(prompt).input_ids
        assert model.text_tokens(prompt) == ids, prompt
        made = theirs.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=ends,
            pad_token_id=ends[0],
        )[0].tolist()
        settings = model.settings(12, 0, 0, 1.0, 0)
        assert list(model.write_tokens(ids, settings)) == made[len(ids) :], prompt
        before = oracle.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        whole = oracle.decode(made, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if "\ufffd" not in whole:  # broken bytes are shown in several ways
            assert whole.startswith(before)
            assert greedy(model, prompt, 12) == whole[len(before) :], prompt


@pytest.mark.parametrize("name", BEGINS)
def test_greedy_text_is_that_of_transformers(zoo: Path, name: str, tmp_path: Path) -> None:
    model = load(zoo / name, machine=FP32)
    assert (model.text_tokens("hello")[0] == model.tokenizer.start_of_text) == BEGINS[name]
    agrees(model, zoo / name, adds_start=True if name == "bos_config" else None)
    export(read_model(zoo / name), tmp_path / "out", "hf")
    agrees(load(tmp_path / "out", machine=FP32), tmp_path / "out")


def test_a_model_made_here_is_prompted_as_it_was_trained(own: Path, tmp_path: Path) -> None:
    model = load(own, machine=FP32)
    documents = tmp_path / "documents.jsonl"
    documents.write_text(json.dumps({"id": "1", "text": "hello there", "source": "a"}) + "\n")
    sources = tokenize_sources(documents, model.tokenizer, tmp_path / "shards")
    framed = sources["a"].shards.tokens.tolist()
    assert framed == [*model.text_tokens("hello there"), model.tokenizer.end_of_text]
    export(read_model(own), tmp_path / "hf", "hf")
    again = load(tmp_path / "hf", machine=FP32)
    agrees(model, tmp_path / "hf")
    agrees(again, tmp_path / "hf")
    pytest.importorskip("gguf")
    found = export(read_model(own), tmp_path / "model.gguf", "gguf", "f32")
    gguf = load(found.path, machine=FP32)
    for prompt in PROMPTS:
        assert gguf.text_tokens(prompt) == model.text_tokens(prompt)
        assert greedy(gguf, prompt, 8) == greedy(model, prompt, 8)


@pytest.mark.parametrize("name", [*BEGINS, "chatml"])
def test_all_commands_read_a_text_alike(zoo: Path, name: str) -> None:
    read = read_model(zoo / name)
    subject = make_evaluated_model(read, resolve_machine(MachineConfig(threads=1)))
    model = LanguageModel(read.decoder, read.tokenizer)
    tokens = model.text_tokens("what is it?")
    assert subject.encode_contexts(["what is it?"]) == [tokens]
    (pair,) = subject.encode_pairs([("what is it?", " it is a dog")])
    assert list(pair.tokens) == model.text_tokens("what is it? it is a dog")
    asked = TextFunction(subject, extraction("name", "Say it.", "x.jsonl"), [])
    question = asked.question("a dog")
    (context,) = subject.encode_contexts(list(question.contexts[:1]))
    assert context == model.text_tokens(question.contexts[0])


@pytest.mark.parametrize("name", ["bos_config", "bos_processor", "no_bos"])
def test_a_gguf_file_keeps_the_rule(zoo: Path, name: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    found = export(read_model(zoo / name), tmp_path / "model.gguf", "gguf", "f32")
    fields = gguf.GGUFReader(found.path).fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is BEGINS[name]
    before, after = load(zoo / name), load(found.path)
    assert fields["tokenizer.ggml.bos_token_id"].contents() == before.tokenizer.start_of_text
    assert after.text_tokens("hello there") == before.text_tokens("hello there")


def test_a_run_on_a_base_model_keeps_the_rule(zoo: Path, tmp_path: Path) -> None:
    for name in BEGINS:
        tokenizer = read_model(zoo / name).tokenizer
        tokenizer.save(tmp_path / name)
        back = Tokenizer.load(tmp_path / name)
        assert back.text_start == tokenizer.text_start
        # Written before the rule was kept there.
        chat = json.loads((tmp_path / name / "chat.json").read_text())
        del chat["text_start"], chat["markers"]
        (tmp_path / name / "chat.json").write_text(json.dumps(chat))
        if BEGINS[name]:
            assert Tokenizer.load(tmp_path / name).text_start == tokenizer.text_start


def test_what_a_config_forbids_is_not_added(zoo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(zoo / "bos_processor", tmp_path / "forbidden"))
    config: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load(folder).tokenizer.text_start == ()


def test_no_text_at_all_still_has_a_token(zoo: Path) -> None:
    tokenizer = read_model(zoo / "no_bos").tokenizer
    (prompt,) = encode_text_prompts(tokenizer, [""])
    assert (prompt.tokens, prompt.start) == ([tokenizer.start_of_text], 1)
    (bare,) = encode_text_prompts(tokenizer, [""], add_special_tokens=False)
    assert bare.tokens == []


def test_without_a_template_a_conversation_begins_as_a_text(zoo: Path) -> None:
    read = read_model(zoo / "bos_config")
    asked = read.tokenizer.encode_chat([{"role": "user", "content": "hi"}], ask=True).tokens
    assert asked[0] == read.tokenizer.start_of_text
    assert asked[1] != read.tokenizer.start_of_text


def test_smollm2_continues_as_transformers_does(smollm_gguf: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    read: ReadModel = read_model(smollm_gguf)
    model = load(smollm_gguf)
    oracle = transformers.AutoTokenizer.from_pretrained(
        smollm_gguf.parent, gguf_file=smollm_gguf.name
    )
    assert model.text_tokens("Water boils at") == oracle("Water boils at").input_ids
    assert greedy(model, "Water boils at", 8).startswith(" 100°C")
    export(read, tmp_path / "out", "hf")
    agrees(model, tmp_path / "out")
