"""The Python API: the same as the command line, as objects; and scores of a reward model."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import lmsmith
import lmsmith.models.folder
from lmsmith import api, cli
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.models.heads import ScalarModel
from lmsmith.tokenizers import Tokenizer

TOKENIZER = Tokenizer.train(["the dog ran to the river and sat by the blue sea, 1 + 2"] * 4, 300)
ROWS = [
    {"prompt": "the dog?", "responses": ["the river", "the sea", "the river"]},
    {"prompt": [{"role": "user", "content": "the sea?"}], "response": "blue"},
    {"messages": [{"role": "user", "content": "1 + 2"}, {"role": "assistant", "content": "2"}]},
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, models_of_the_test: None) -> Path:
    """Two models that write and one that gives rewards, of random weights."""
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("one", "two", "runs/small/reward/model")):
        decoder = Decoder(ModelConfig(2, 32, 2, 128, TOKENIZER.vocabulary_size))
        model = ScalarModel(decoder) if "reward" in name else decoder
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                mean = 1.0 if key.endswith("norm.weight") else 0.0
                parameter.normal_(mean, 0.3, generator=generator)
        save_model(tmp_path / name, model, TOKENIZER, {})
    items = [
        {"query": f"the dog ran {n}", "choices": ["to the sea", "river"], "gold": n % 2}
        for n in range(8)
    ]
    text = "".join(json.dumps(row) + "\n" for row in items)
    (tmp_path / "choose.jsonl").write_text(text)
    return tmp_path


def test_every_public_name_can_be_imported() -> None:
    assert all(getattr(lmsmith, name) is not None for name in lmsmith.__all__)
    with pytest.raises(AttributeError):
        _ = lmsmith.no_such_name


def test_an_evaluation_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    found = lmsmith.evaluate("one", tasks=["choose.jsonl"], shots=[0, 1], threads=1, quiet=True)
    words = ["--tasks", "choose.jsonl", "--shots", "0,1", "--threads", "1", "--json"]
    assert cli.main(["eval", "one", *words]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found.as_dict()))
    assert [each.setting.label for each in found.results] == ["0", "1"]
    assert found.report is not None
    assert found.report.is_file()


def test_a_comparison_has_pairs() -> None:
    found = lmsmith.compare(["one", "two"], tasks=["choose.jsonl"], threads=1, quiet=True)
    (pair,) = found.pairs
    assert (pair.after, pair.before) == ("one", "two")
    assert pair.comparisons[0].items == 8
    assert [each.name for each in found.evaluations] == ["two", "one"]


def test_scores_are_the_head_at_the_last_token() -> None:
    found = lmsmith.score("runs/small", ROWS, precision="fp32", threads=1)
    assert len(found.scores) == 5
    assert found.scores[0].reward == found.scores[2].reward
    model = lmsmith.models.folder.load_scalar_model(Path("runs/small/reward/model"))
    for each in found.scores:
        tokens = torch.tensor([_tokens(each.messages)])
        with torch.no_grad():
            expected = float(model(tokens)[0, -1])
        assert each.reward == pytest.approx(expected, abs=1e-5)


def _tokens(messages: tuple[api.Message, ...]) -> list[int]:
    from lmsmith.prompts import encode_prompt

    prompt = encode_prompt(TOKENIZER, list(messages[:-1])).tokens
    return [*prompt, *TOKENIZER.encode(messages[-1]["content"]), TOKENIZER.end_of_turn]


def test_the_command_scores_arguments_a_file_and_standard_input(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (here / "rows.jsonl").write_text(text)
    words = ["score", "runs/small/reward", "--precision", "fp32", "--threads", "1"]
    assert cli.main([*words, "--input", "rows.jsonl", "--json"]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert [each["messages"][-1]["content"] for each in whole["scores"]][3:] == ["blue", "2"]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [float(line.split()[0]) for line in lines] == pytest.approx(
        [each["reward"] for each in whole["scores"]], abs=1e-4
    )
    asked = ["--prompt", "the dog?", "--response", "the river", "--response", "the sea"]
    assert cli.main([*words, *asked]) == 0
    assert capsys.readouterr().out.splitlines() == lines[:2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["one", "--prompt", "a", "--response", "b"], "it has no reward head"),
        (["runs/small", "--prompt", "a"], "one without the other"),
        (["runs/small", "--input", "absent.jsonl"], "absent.jsonl"),
        (["runs/small", "--input", "choose.jsonl"], "conversation 1: no prompt with a response"),
        (["runs/small", "--input", "bad.jsonl"], "line 1: not valid JSON"),
        (["runs/small", "--input", "list.jsonl"], "line 1: not a JSON object"),
        (["runs/small", "--input", "empty.jsonl"], "empty.jsonl: no conversations"),
        (["runs/small", "--input", "user.jsonl"], "the last message is not a response"),
    ],
)
def test_mistakes_are_told_in_one_message(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    for name, text in (
        ("bad", "{"),
        ("list", "[1]"),
        ("empty", ""),
        ("user", '{"messages": [{"role": "user", "content": "hi"}]}'),
    ):
        (here / f"{name}.jsonl").write_text(text)
    assert cli.main(["score", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
