"""Data that teaches nothing, or the wrong thing: left out, counted and said, or refused."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lmsmith
from lmsmith.cli import main
from lmsmith.core.files import read_json
from lmsmith.core.renamed_keys import RENAMED_KEYS
from lmsmith.corpus.rows import read_conversations, read_rankings
from lmsmith.prompts.selection import select_prompts
from lmsmith.rlhf.ranking import encode_rankings
from lmsmith.tokenizers import Tokenizer

Faults = Callable[[str], Path]

TOKENIZER = Tokenizer.train(["question: the same long beginning of an answer"] * 4, 300)


def made(faults: Faults, name: str, folder: Path) -> Path:
    """A folder in which the script of a kind of fault has written its files."""
    script = faults(name) / "make.py"
    subprocess.run([sys.executable, str(script)], cwd=folder, check=True)
    return folder


def run_recipe(folder: Path, text: str, *overrides: str) -> int:
    """Run a recipe that lies in a folder, into ``run`` there."""
    (folder / "own.toml").write_text(text, encoding="utf-8")
    options = [word for override in overrides for word in ("--set", override)]
    recipe = str(folder / "own.toml")
    return main(["run", recipe, "--folder", str(folder / "run"), "--quiet", *options])


def record(folder: Path, stage: str) -> dict[str, Any]:
    found = read_json(folder / "run" / stage / "stage.json")
    assert isinstance(found, dict)
    return found


def until_sft(faults: Faults) -> str:
    """The recipe of tiny stages without those after SFT."""
    text = (faults("05-prompt-fills-context").parent / "tiny.toml").read_text(encoding="utf-8")
    return text[: text.index("[rankings]")]


def test_questions_that_fill_the_context_are_refused(
    faults: Faults, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(faults, "05-prompt-fills-context", tmp_path)
    assert run_recipe(tmp_path, until_sft(faults)) == 2
    said = capsys.readouterr().err
    assert "nothing is left to learn from" in said
    assert "what they answer does not fit the context of 128 tokens" in said
    assert not (tmp_path / "run" / "sft" / "model").exists()


def test_rows_whose_question_does_not_fit_are_left_out_and_counted(
    faults: Faults, tmp_path: Path
) -> None:
    made(faults, "05-prompt-fills-context", tmp_path)
    assert run_recipe(tmp_path, until_sft(faults), 'data.conversations=["half.jsonl"]') == 0
    found = record(tmp_path, "sft")
    metrics = found["metrics"]
    assert 0 < metrics["replies_without_question"] < metrics["replies"]
    assert metrics["windows"] == metrics["replies"] - metrics["replies_without_question"]
    assert any("what they answer does not fit" in line for line in found["warnings"])


ALPACA = (
    "{% for m in messages %}{{ '### ' + m['role'] + ':\n' + m['content'] + '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
)


@pytest.mark.parametrize("template", ["glm", "alpaca"])
def test_replies_end_after_training_by_a_template_that_ends_none(
    faults: Faults, zoo: Path, tmp_path: Path, template: str
) -> None:
    folder = tmp_path / "zoo" / "glm"
    folder.mkdir(parents=True)
    for file in (zoo / "glm").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    if template == "alpaca":
        config = read_json(folder / "tokenizer_config.json")
        assert isinstance(config, dict)
        (folder / "tokenizer_config.json").write_text(
            json.dumps(config | {"chat_template": ALPACA})
        )
    chance = random.Random(1)
    words = ["the cat", "my sister", "a baker", "likes", "sold", "found", "maps", "snow"]
    rows = [
        [
            {"role": role, "content": " ".join(chance.choices(words, k=3))}
            for role in ("user", "assistant") * chance.choice((1, 2))
        ]
        for _ in range(60)
    ]
    lines = [json.dumps({"messages": messages}) + "\n" for messages in rows]
    (tmp_path / "conversations.jsonl").write_text("".join(lines), encoding="utf-8")
    recipe = (faults("06-no-end-token") / "glm-sft.toml").read_text(encoding="utf-8")
    assert run_recipe(tmp_path, recipe) == 0
    assert record(tmp_path, "sft")["metrics"]["share_ended"] > 0.8
    model = lmsmith.load(tmp_path / "run" / "sft")
    settings = model.settings(96, 1.0, 0, 1.0, 0)
    for messages in rows[:5]:  # at the first turn as at later ones
        prompt = model.prompt(messages[:-1], settings)
        assert model.whole_reply(prompt.tokens, settings).tokens[-1] in model.tokenizer.stop_tokens


@pytest.mark.parametrize(
    ("name", "reason"),
    [("all_ties", "tied"), ("contradiction", "contradicted"), ("pairs", "equal")],
)
def test_rankings_that_teach_nothing_are_left_out(
    faults: Faults, tmp_path: Path, name: str, reason: str
) -> None:
    path = faults("07-equal-after-cut") / f"{name}.jsonl"
    if not path.exists():
        path = made(faults, "07-equal-after-cut", tmp_path) / f"{name}.jsonl"
    rankings = list(read_rankings(path))
    counts: Counter[str] = Counter()
    assert encode_rankings(TOKENIZER, rankings, 128, counts) == ([], [])
    assert counts[reason] == len(rankings)


def test_twins_are_one_response_and_cut_ones_are_counted(faults: Faults, tmp_path: Path) -> None:
    rankings = list(read_rankings(faults("07-equal-after-cut") / "kway_twins.jsonl"))
    counts: Counter[str] = Counter()
    encoded, _ = encode_rankings(TOKENIZER, rankings, 128, counts)
    assert [len(each.responses) for each in encoded] == [2] * len(rankings)
    assert counts["responses_equal"] == len(rankings)
    mixed = made(faults, "07-equal-after-cut", tmp_path) / "mixed.jsonl"
    encoded, _ = encode_rankings(TOKENIZER, list(read_rankings(mixed)), 128, counts)
    assert len(encoded) == counts["equal"] == 30


def test_ppo_from_python_names_what_is_wrong(faults: Faults) -> None:
    script = (faults("25-ppo-api") / "p.py").read_text(encoding="utf-8")
    for old, (new, *_) in RENAMED_KEYS.items():
        script = re.sub(rf"\b{old}=", f"{new}=", script)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    lines = [line for line in done.stdout.splitlines() if "check:" not in line]
    assert len(lines) > 15
    for line in lines:
        assert " ok " in line or "UserError" in line or "SettingsError" in line, line
        assert "learning rate" not in line
    refused = "\n".join(line for line in lines if " ok " not in line)
    for name in ("nan", "inf", "short", "matrix", "huge"):
        assert f"{name} reward UserError" in refused
    assert refused.count("SettingsError PPOConfig: a problem") == 7


def test_prompts_of_ppo_are_taken_however_long_the_reply(faults: Faults) -> None:
    path = faults("39-ppo-long-replies") / "conversations.jsonl"
    conversations = list(read_conversations(path))
    assert max(len(each.messages[-1]["content"]) for each in conversations) > 100
    found = select_prompts(conversations, TOKENIZER, 99, most=999, per_conversation=9)
    assert len(found) == len(conversations)
