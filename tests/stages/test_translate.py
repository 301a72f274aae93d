"""The translate stage on made sentences: it learns, is measured, and continues to the bit."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from lmsmith.core.config import decode, problems_in
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.models.config import ModelConfig
from lmsmith.models.encoder_decoder import EncoderDecoder
from lmsmith.models.folder import load_kind, load_model
from lmsmith.models.presets import TRANSFORMERS
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages.translate import TranslateConfig, run
from lmsmith.training import loop
from lmsmith.training.optimiser import OptimiserConfig

pytest.importorskip("sacrebleu")

WORDS = {"red": "rot", "blue": "blau", "dog": "hund", "cat": "katze", "runs": "geht", "is": "ist"}
SUBJECTS, VERBS, COLOURS = ("dog", "cat"), ("runs", "is"), ("red", "blue")
SHAPE = ModelConfig(
    1, 32, 2, 24, norm_position="post", positions="sinusoidal", activation="relu", dropout=0.1
)


def sentences() -> list[tuple[str, str]]:
    """A language of words, and one of other words in the reverse order."""
    found = []
    for subject in SUBJECTS:
        for verb in VERBS:
            for colour in COLOURS:
                for other in SUBJECTS:
                    words = ["the", colour, subject, verb, "a", other]
                    found.append((" ".join(words), " ".join(WORDS.get(w, w) for w in words[::-1])))
    return found


def write(folder: Path, pairs: list[tuple[str, str]], name: str = "train") -> tuple[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}.en", folder / f"{name}.de.gz"
    paths[0].write_text("\n".join(pair[0] for pair in pairs) + "\n", encoding="utf-8-sig")
    with gzip.open(paths[1], "wt", encoding="utf-8") as file:
        file.write("\r\n".join(pair[1] for pair in pairs) + "\n")
    return str(paths[0]), str(paths[1])


def config(folder: Path, **changes: object) -> TranslateConfig:
    made = TranslateConfig(
        *write(folder, sentences() * 4),
        *write(folder, sentences()[::3], "held"),
        vocabulary_size=300,
        model=SHAPE,
        epochs=70,
        batch_tokens=160,
        warmup_steps=10,
        schedule="linear",
        optimiser=OptimiserConfig(learning_rate=1e-2, beta2=0.98, epsilon=1e-9, weight_decay=0.0),
        validations=3,
        beam=2,
    )
    return replace(made, **changes)


def stage_folder(path: Path) -> StageFolder:
    machine = MachineConfig(precision="fp32", compile="off", threads=1, checkpoint_seconds=1e9)
    return StageFolder(path, 5, machine, QuietProgress())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageFolder, dict[str, float]]:
    folder = tmp_path_factory.mktemp("made")
    out = stage_folder(folder / "translate")
    return out, run(config(folder), {}, out)


def test_it_learns_and_is_measured(made: tuple[StageFolder, dict[str, float]]) -> None:
    out, metrics = made
    assert metrics["bleu"] > 80
    rows = read_metrics(out / "metrics.jsonl")
    assert len(rows) == metrics["steps"]
    assert rows[-1]["loss"] < 0.4 * rows[0]["loss"]
    measured = json.loads((out / "bleu.json").read_text())
    assert measured["bleu"] == metrics["bleu"]
    assert "tok:13a" in measured["signature"]
    samples = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    assert samples[0]["source"] == sentences()[0][0]
    weights = samples[0]["attention"]["weights"]
    assert [sum(row) for row in weights] == pytest.approx([1.0] * len(weights), abs=1e-4)


def test_held_out_pairs_are_not_learnt(made: tuple[StageFolder, dict[str, float]]) -> None:
    _, metrics = made
    held, all_ = len(sentences()[::3]), len(sentences())
    assert metrics["validation_pairs"] == held
    assert metrics["pairs"] == 4 * (all_ - held)
    assert metrics["pairs_held_out"] == 4 * held


def test_the_model_is_saved(made: tuple[StageFolder, dict[str, float]]) -> None:
    model = load_kind(made[0] / "model", EncoderDecoder, "")
    assert model.config.model.width == 32
    assert model.config.start_token == model.config.end_token
    assert model.config.parameters == made[1]["parameters"]
    assert not load_model(made[0] / "model").training


def test_a_killed_run_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = config(tmp_path, epochs=6)
    whole, cut = stage_folder(tmp_path / "whole"), stage_folder(tmp_path / "cut")
    expected = run(short, {}, whole)
    asked = iter([None] * 7 + [2])
    monkeypatch.setattr(loop, "stop_requested", lambda: next(asked, None))
    with pytest.raises(Interrupted):
        run(short, {}, cut)
    monkeypatch.setattr(loop, "stop_requested", lambda: None)
    found = run(short, {}, cut)
    measured = {"tokens_per_second", "share_of_peak", "sentences_per_second"}
    for name in set(expected) - measured:
        assert found[name] == expected[name], name
    names = ("model.safetensors", "tokenizer.json")
    for name in names:
        assert (cut / "model" / name).read_bytes() == (whole / "model" / name).read_bytes()


def test_a_part_is_held_out_where_no_validation_is_named(tmp_path: Path) -> None:
    plain = config(tmp_path, validation_source="", validation_target="", epochs=0.1)
    out = stage_folder(tmp_path / "translate")
    metrics = run(plain, {}, out)
    assert metrics["validation_pairs"] == round(0.05 * 4 * len(sentences()))


def test_sentences_longer_than_the_context_are_left_out(tmp_path: Path) -> None:
    long = [("the dog " * 20, "hund " * 20)]
    paths = write(tmp_path, [*sentences() * 2, *long], "long")
    short = config(tmp_path, source=paths[0], target=paths[1], epochs=0.1)
    out = stage_folder(tmp_path / "translate")
    assert run(short, {}, out)["pairs_too_long"] == 1
    only = write(tmp_path, long, "only")
    short = replace(short, source=only[0], target=only[1], vocabulary_size=262)
    with pytest.raises(UserError, match="no sentence fits the context of 24 tokens"):
        run(short, {}, stage_folder(tmp_path / "none"))


def test_a_validation_file_of_which_no_sentence_fits_is_refused_before_the_training(
    tmp_path: Path,
) -> None:
    long = [(" ".join([source] * 9), target) for source, target in sentences()]
    held = write(tmp_path, long, "long")
    out = stage_folder(tmp_path / "translate")
    wrong = config(tmp_path, validation_source=held[0], validation_target=held[1], epochs=0.1)
    with pytest.raises(UserError, match=r"long\.en: no validation pair fits the context of 24"):
        run(wrong, {}, out)
    assert not (out / "metrics.jsonl").exists()


def test_the_model_is_saved_before_it_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> dict[str, float]:
        raise MemoryError

    monkeypatch.setattr("lmsmith.stages.translate.measure_bleu", broken)
    out = stage_folder(tmp_path / "translate")
    with pytest.raises(MemoryError):
        run(config(tmp_path, epochs=0.1), {}, out)
    assert load_kind(out / "model", EncoderDecoder, "").config.model.width == 32


def test_settings_are_checked(tmp_path: Path) -> None:
    keys = [problem.key for problem in problems_in(TranslateConfig())]
    assert keys == ["source", "target"]
    one = replace(config(tmp_path), validation_target="")
    assert [problem.key for problem in problems_in(one)] == ["validation_target"]
    table = {"source": "a", "target": "b", "model": {"preset": "transformer-base", "dropout": 0.3}}
    read, problems = decode(TranslateConfig, table, "translate")
    assert not problems
    assert read is not None
    base = TRANSFORMERS["transformer-base"].config
    expected = replace(base, dropout=0.3, vocabulary_size=0)
    assert read.model == expected
    _, problems = decode(TranslateConfig, table | {"model": {"preset": "gpt2"}}, "translate")
    assert [problem.key for problem in problems] == ["translate.model.preset"]
