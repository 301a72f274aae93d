"""What a user of the command line sees of start tokens, spaces, characters and new rankings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsmith import cli

transformers = pytest.importorskip("transformers")

PROMPTS = ["hello there", "def add(a, b):\n", "    return a"]


def generated(
    capsys: pytest.CaptureFixture[str], folder: Path, prompt: str, *words: str
) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.main(["generate", str(folder), prompt, "--json", *words]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize("name", ["chatml", "bos_processor", "spm"])
def test_greedy_text_is_that_of_transformers(
    zoo: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(zoo / name)
    model = transformers.AutoModelForCausalLM.from_pretrained(zoo / name).float().eval()
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    spaces = 0
    for prompt in PROMPTS:
        ids = theirs(prompt).input_ids
        made = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=8,
            pad_token_id=theirs.eos_token_id,
            eos_token_id=theirs.eos_token_id,
        )[0].tolist()
        expected = theirs.decode(made, **options)[len(theirs.decode(ids, **options)) :]
        if "\ufffd" in expected:  # broken bytes are shown in several ways
            continue
        spaces += expected.startswith(" ")
        said = generated(capsys, zoo / name, prompt, "--max-tokens", "8", "--temperature", "0")
        assert (said["prompt_tokens"], said["text"]) == (ids, expected)
    assert spaces or name != "spm"


@pytest.mark.parametrize("name", ["chatml", "spm", "padded"])
def test_what_is_drawn_breaks_no_character(
    zoo: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--max-tokens", "24", "--temperature", "2", "--top-p", "1"]
    for seed in range(4):
        said = generated(capsys, zoo / name, "你好", *words, "--seed", str(seed))
        assert "\ufffd" not in said["text"]


def test_more_rankings_repeat_nothing_that_does_not_read_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"where is thing {n}?"},
                {"role": "assistant", "content": f"thing {n} is in drawer {n * 7 % 31}"},
            ]
        }
        for n in range(60)
    ]
    for name, start in (("first", 0), ("second", 30)):
        ranked = [
            {"prompt": row["messages"][0]["content"], "responses": ["in a drawer", "no"]}
            | {"ranks": [1, 2]}
            for row in rows[start : start + 24]
        ]
        text = "".join(json.dumps(each) + "\n" for each in ranked)
        (tmp_path / f"{name}.jsonl").write_text(text, "utf-8")
    talks = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "talks.jsonl").write_text(talks, "utf-8")
    recipe = tmp_path / "my.toml"
    said = '[data]\nconversations = ["talks.jsonl"]\nrankings = [FILES]\n'
    said += "[tokenizer]\nvocabulary_size = 300\n"
    first, second = '"first.jsonl"', '"second.jsonl"'
    words = ["run", str(recipe), "--folder", str(tmp_path / "run"), "--json"]

    recipe.write_text(said.replace("FILES", first), "utf-8")
    assert cli.main(words) == 0
    recipe.write_text(said.replace("FILES", f"{first}, {second}"), "utf-8")
    capsys.readouterr()
    assert cli.main(words) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert stages["data"]["action"] == "run"
    assert stages["data"]["metrics"]["rankings"] == 48
    assert stages["tokenizer"]["action"] == "skip"
