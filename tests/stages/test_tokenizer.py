"""The tokenizer stage trains on training text only, and measures on held-out text."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lmsmith.core.config import decode
from lmsmith.core.errors import UserError
from lmsmith.core.files import write_jsonl
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages.tokenizer import TokenizerConfig, run
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.hugging_face import to_hugging_face

TRAINING = "the quick brown fox jumps over the lazy dog and the other dogs " * 20
TEST = "unseen zebras"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "data" / "documents.jsonl", [{"text": TRAINING}])
    write_jsonl(tmp_path / "data" / "test_documents.jsonl", [{"text": TEST}])
    return tmp_path / "data"


def stage_folder(data: Path, name: str = "tokenizer") -> StageFolder:
    path = data.parent / name
    path.mkdir()
    return StageFolder(path, 1, MachineConfig(), QuietProgress())


def test_it_trains_saves_and_measures(data: Path) -> None:
    out = stage_folder(data)
    metrics = run(TokenizerConfig(vocabulary_size=280), {"data": data}, out)
    tokenizer = Tokenizer.load(out.path)
    assert metrics["vocabulary_size"] == tokenizer.vocabulary_size == 280
    assert metrics["bytes_per_token"] == len(TEST) / len(tokenizer.encode(TEST))
    assert metrics["tokens_per_character"] == len(tokenizer.encode(TEST)) / len(TEST)
    again = stage_folder(data, "again")
    run(TokenizerConfig(vocabulary_size=280), {"data": data}, again)
    for name in ("tokenizer.json", "chat.json"):
        assert (out / name).read_bytes() == (again / name).read_bytes()


def test_test_text_teaches_it_nothing(data: Path) -> None:
    out = stage_folder(data)
    run(TokenizerConfig(), {"data": data}, out)
    tokenizer = Tokenizer.load(out.path)
    pieces = [tokenizer.token_bytes(token) for token in tokenizer.encode("zebras")]
    assert pieces[0] == b"z"


def test_less_text_than_tokens_is_said(data: Path) -> None:
    out = stage_folder(data)
    metrics = run(TokenizerConfig(vocabulary_size=4096), {"data": data}, out)
    assert metrics["vocabulary_size"] < 400
    assert isinstance(out.progress, QuietProgress)
    assert any("not 4096" in line for line in out.progress.said)


def test_one_made_before_can_be_loaded(data: Path) -> None:
    made = data.parent / "made"
    Tokenizer.train([TRAINING], 270).save(made)
    config = TokenizerConfig(load=str(made))
    out = stage_folder(data)
    assert run(config, {"data": data}, out)["vocabulary_size"] == 270
    assert (out / "tokenizer.json").read_bytes() == (made / "tokenizer.json").read_bytes()
    assert config.external_files() == [str(made / "tokenizer.json"), str(made / "chat.json")]
    with pytest.raises(UserError, match="nowhere"):
        run(TokenizerConfig(load="nowhere"), {"data": data}, out)


def test_one_of_another_program_can_be_loaded(data: Path) -> None:
    made = data.parent / "made"
    to_hugging_face(Tokenizer.train([TRAINING], 270), made)
    config = TokenizerConfig(load=str(made))
    out = stage_folder(data)
    assert run(config, {"data": data}, out)["vocabulary_size"] == 270
    assert not Tokenizer.load(out.path).is_own
    names = [Path(name).name for name in config.external_files()]
    assert "tokenizer.json" in names
    assert "chat_template.jinja" in names


def test_without_training_text_it_says_what_to_do(data: Path) -> None:
    (data / "documents.jsonl").unlink()
    with pytest.raises(UserError, match="left no text for training"):
        run(TokenizerConfig(), {"data": data}, stage_folder(data))


def test_the_vocabulary_size_is_checked() -> None:
    _, problems = decode(TokenizerConfig, {"vocabulary_size": 100}, "tokenizer")
    assert [problem.key for problem in problems] == ["tokenizer.vocabulary_size"]
    assert "261" in problems[0].expected


class Heard(QuietProgress):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def chinese(tmp_path: Path) -> Path:
    characters = [chr(0x4E00 + number) for number in range(900)]
    chance = random.Random(0)
    weights = [(1 + number) ** -0.5 for number in range(900)]
    texts = ["".join(chance.choices(characters, weights, k=60)) + "abc" for _ in range(300)]
    write_jsonl(tmp_path / "data" / "documents.jsonl", [{"text": text} for text in texts])
    return tmp_path / "data"


def test_a_vocabulary_too_small_for_the_characters_is_said_with_a_size_that_does(
    tmp_path: Path,
) -> None:
    data = chinese(tmp_path)
    out = stage_folder(data)
    heard = Heard()
    out = StageFolder(out.path, 1, MachineConfig(), heard)
    metrics = run(TokenizerConfig(vocabulary_size=300), {"data": data}, out)
    assert metrics["whole_characters"] < 0.9
    (told,) = heard.said
    assert "are split into bytes" in told
    size = int(told.split("tokenizer.vocabulary_size to ")[1].split()[0])
    assert size % 256 == 0
    after = Heard()
    path = stage_folder(data, "again").path
    again = StageFolder(path, 1, MachineConfig(), after)
    assert run(TokenizerConfig(size), {"data": data}, again)["whole_characters"] >= 0.9
    assert not any("split into bytes" in each for each in after.said)
    assert size > 512
    smaller = run(TokenizerConfig(size - 257), {"data": data}, stage_folder(data, "smaller"))
    assert smaller["whole_characters"] < 0.9


def test_english_hears_nothing_of_characters(data: Path) -> None:
    metrics = run(TokenizerConfig(vocabulary_size=280), {"data": data}, stage_folder(data))
    assert "whole_characters" not in metrics
