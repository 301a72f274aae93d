"""Loading a model by any of its names, and writing and talking with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lmsmith
from lmsmith.core.errors import UserError
from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.engine import SamplingSettings, generate
from lmsmith.generation.speculative import PromptLookup
from lmsmith.library import LanguageModel, load, until_stop
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.models.heads import ScalarModel
from lmsmith.prompts import encode_prompt
from lmsmith.tokenizers import Tokenizer

TOKENIZER = Tokenizer.train(["hello there, how are you? I am well, thank you. 你好 🙂"] * 4, 300)
FP32 = MachineConfig(precision="fp32")


def tiny_decoder(seed: int = 0, context: int = 64) -> Decoder:
    decoder = Decoder(ModelConfig(2, 32, 4, context, TOKENIZER.vocabulary_size)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.normal_(centre, 0.2, generator=generator)
    return decoder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    run = tmp_path / "runs" / "small"
    for seed, stage in enumerate(("pretrain", "sft", "ppo")):
        save_model(run / stage / "model", tiny_decoder(seed), TOKENIZER, {"stage": stage})
    save_model(run / "reward" / "model", ScalarModel(tiny_decoder()), TOKENIZER, {})
    (run / "recipe.json").write_text("{}", encoding="utf-8")
    return run


@pytest.fixture
def model(run_folder: Path) -> Iterator[LanguageModel]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield load(run_folder, machine=FP32)
    torch.set_num_threads(threads)


def test_a_run_stands_for_its_last_stage(run_folder: Path) -> None:
    assert load(run_folder).card == {"stage": "ppo"}
    assert load(str(run_folder / "sft")).card == {"stage": "sft"}
    assert load(run_folder / "pretrain" / "model").card == {"stage": "pretrain"}
    (run_folder / "ppo" / "model" / "config.json").unlink()
    assert load(run_folder).card == {"stage": "sft"}


def test_what_is_no_model_is_named(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run_folder.parents[1])
    with pytest.raises(UserError, match=r"runs/smal: no such folder .*\n.*did you mean runs/small"):
        load("runs/smal")
    with pytest.raises(UserError, match=r"runs/different: no such folder .*\n.*runs holds small"):
        load("runs/different")
    with pytest.raises(UserError, match="did you mean runs/small"):
        load("small")
    with pytest.raises(UserError, match=r"nowhere: no such folder.*\n.*the runs here: runs/small"):
        load("nowhere")
    with pytest.raises(UserError, match=r"recipe.json is a file; a model is a folder"):
        load("runs/small/recipe.json")
    with pytest.raises(UserError, match=r"neither a model folder nor a run .it holds small"):
        load("runs")
    with pytest.raises(UserError, match="reward or value model"):
        load("runs/small/reward")
    Path("runs/new/data").mkdir(parents=True)
    Path("runs/new/recipe.json").touch()
    with pytest.raises(UserError, match=r"a run without a model yet .it holds data, recipe.json"):
        load("runs/new")
    Path("empty").mkdir()
    with pytest.raises(UserError, match="it is empty"):
        load("empty")


def test_a_tokenizer_of_another_run_is_noticed(run_folder: Path) -> None:
    Tokenizer.train(["other words"] * 3, 270).save(run_folder / "ppo" / "model")
    with pytest.raises(UserError, match="the files in it come from different runs"):
        load(run_folder)


def test_generate_is_the_engines_text(model: LanguageModel) -> None:
    settings = SamplingSettings(40, 0.8, 0, 0.95, tuple(range(5)), seed=3)
    prompt = [TOKENIZER.end_of_text, *TOKENIZER.encode("hello")]
    tokens = generate(model.decoder, [prompt], settings, tokenizer=TOKENIZER)[0]
    text = model.generate("hello", max_new_tokens=40, seed=3)
    assert TOKENIZER.decode(tokens).startswith(text)
    assert TOKENIZER.decode(tokens).removeprefix(text) in ("", "\ufffd")
    assert text != model.generate("hello", max_new_tokens=40, seed=4)
    assert model.generate("", max_new_tokens=3)


@pytest.mark.parametrize("kind", ["model", "lookup"])
def test_a_draft_changes_no_greedy_text(model: LanguageModel, kind: str) -> None:
    drafted = LanguageModel(model.decoder, TOKENIZER, machine=model.machine)
    drafted.draft = model.decoder if kind == "model" else PromptLookup()
    for text in ("hello", "a b a b a"):
        expected = model.generate(text, max_new_tokens=20, temperature=0)
        assert drafted.generate(text, max_new_tokens=20, temperature=0) == expected
        settings = model.settings(20, 0.0, 0, 1.0, 0)
        tokens = model.text_tokens(text)
        assert drafted.whole_reply(tokens, settings) == model.whole_reply(tokens, settings)


def test_chat_answers_the_conversation(model: LanguageModel) -> None:
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "hello"}]
    reply = model.chat(messages, seed=1)
    assert reply == model.chat(messages, seed=1)
    assert reply == "".join(model.stream_chat(messages, seed=1))
    prompt = encode_prompt(TOKENIZER, messages)
    settings = SamplingSettings(128, 0.8, 0, 0.95, tuple(range(5)), seed=1)
    tokens = generate(model.decoder, [prompt.tokens], settings, tokenizer=TOKENIZER)[0]
    assert TOKENIZER.decode(tokens).startswith(reply)


def test_the_oldest_turns_are_dropped_to_leave_room(model: LanguageModel) -> None:
    turns = [
        {"role": role, "content": "how are you? " * 2}
        for role in ["user", "assistant"] * 8 + ["user"]
    ]
    system = {"role": "system", "content": "be"}
    settings = model.settings(128, 1.0, 0, 1.0, 0)
    prompt = model.prompt([system, *turns], settings)
    assert prompt.dropped_messages > 0
    assert len(prompt.tokens) <= model.context - model.context // 4
    assert model.chat([system, *turns], temperature=0) is not None
    with pytest.raises(UserError, match="there is room for 48"):
        model.chat([{"role": "user", "content": "x" * 200}])


def test_mistakes_are_named_before_anything_is_written(model: LanguageModel) -> None:
    with pytest.raises(UserError, match="top_p"):
        model.generate("hello", top_p=0)
    with pytest.raises(UserError, match="last message is the assistant's"):
        model.stream_chat([{"role": "assistant", "content": "hello"}])
    with pytest.raises(UserError, match="leaves no room"):
        model.generate("x" * 300)
    with pytest.raises(UserError, match="empty text"):
        model.generate("x", stop="")


def test_stop_texts_end_a_reply_before_them(model: LanguageModel) -> None:
    whole = model.generate("hello", max_new_tokens=40, seed=3)
    assert len(whole) > 10
    stop = whole[4:7]
    assert model.generate("hello", max_new_tokens=40, seed=3, stop=stop) == whole.split(stop)[0]
    both = model.generate("hello", max_new_tokens=40, seed=3, stop=["never there", stop])
    assert both == whole.split(stop)[0]


@given(
    st.lists(st.text("ab", max_size=3), max_size=12),
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
)
def test_until_stop_is_the_text_before_the_first_stop(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    # The first to be complete wins, as when reading; of those, the one that begins first.
    expected = text
    for end in range(len(text) + 1):
        places = [p for p in (text[:end].find(stop) for stop in stops) if p >= 0]
        if places:
            expected = text[: min(places)]
            break
    result = "".join(until_stop(iter(pieces), stops))
    assert not any(stop in result for stop in stops)
    assert text.startswith(result)
    assert len(result) <= len(expected)
    if len(stops) < 2:
        assert result == expected


def test_weights_changed_in_place_are_used(model: LanguageModel) -> None:
    fast = LanguageModel(model.decoder, model.tokenizer)
    before = fast.generate("hello", temperature=0)
    assert fast.generate("hello", temperature=0) == before
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(-0.7)
    assert fast.generate("hello", temperature=0) != before


def test_importing_lmsmith_imports_no_torch() -> None:
    script = (
        "import sys, lmsmith; dir(lmsmith); lmsmith.UserError; lmsmith.__version__;"
        "import lmsmith.cli.chat; assert 'torch' not in sys.modules; lmsmith.load;"
        "assert 'torch' in sys.modules; import json; print(json.dumps(dir(lmsmith)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert {"load", "LanguageModel", "PPOTrainer"} <= set(json.loads(done.stdout))


def test_public_names() -> None:
    assert lmsmith.load is load
    assert lmsmith.PPOTrainer.__name__ == "PPOTrainer"
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        lmsmith.lod  # noqa: B018
