"""A simulation of the loop: labelers disagree as stated, rounds run unattended and go on."""

from __future__ import annotations

import itertools
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lmsmith import cli
from lmsmith.catalogue import versions
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.files import write_jsonl
from lmsmith.core.paths import versions_in
from lmsmith.core.progress import QuietProgress
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.statistics import statistics_of
from lmsmith.feedback.store import Store, open_store
from lmsmith.feedback.votes import votes_on
from lmsmith.improve.recipe import round_recipe
from lmsmith.improve.simulation import running
from lmsmith.improve.simulation.findings import bootstrap_two_ways, findings, record_of
from lmsmith.improve.simulation.labelers import (
    Answered,
    Labelers,
    expected_agreement,
    noise_scale,
    preference,
)
from lmsmith.improve.simulation.world import (
    RECIPE,
    LengthCurve,
    Plan,
    fit_length_curve,
)
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.models.heads import ScalarModel
from lmsmith.report.simulation import build_simulation_page
from lmsmith.tokenizers import Tokenizer

WORDS = ["yes", "no", "maybe", "sure", "I", "you", "we", "think", "like", "tea", "rain", "what"]


def rewards(seed: int, prompts: int = 400) -> list[list[float]]:
    return np.random.default_rng(seed).normal(0.7, 2.0, (prompts, 4)).tolist()


def test_two_labelers_agree_as_stated(seed: int) -> None:
    found = rewards(seed, 2000)
    sigma = noise_scale(found, 0.27)
    # Of normal rewards of deviation τ the seen differences of two labelers are bivariate normal
    # with correlation ρ = τ²/(τ² + σ²): they have one sign with ½ + arcsin(ρ)/π (Sheppard 1899).
    rho = 2.0**2 / (2.0**2 + sigma**2)
    assert 0.5 + math.asin(rho) / math.pi == pytest.approx(0.73, abs=0.01)
    labelers = Labelers(2, lambda rows: [], sigma, seed)
    agreed = []
    for number, row in enumerate(found[:600]):
        prompt, texts = [{"role": "user", "content": str(number)}], ["a", "b", "c", "d"]
        one, two = (labelers.seen(name, prompt, texts, row) for name in ("labeler 1", "labeler 2"))
        for i, j in itertools.combinations(range(4), 2):
            agreed.append((one[i] > one[j]) == (two[i] > two[j]))
    assert np.mean(agreed) == pytest.approx(0.73, abs=0.03)
    assert labelers.seen("labeler 1", prompt, texts, row) == one  # it depends on nothing else


def test_what_length_explains_is_taken_out(seed: int) -> None:
    """Short answers are better, and skewed: the medians go, the means of two lengths may differ."""
    generator = np.random.default_rng(seed)
    tokens = generator.integers(1, 41, 4000)
    skewed = generator.exponential(1.0, 4000) * np.where(tokens < 10, 2.0, 0.5)
    rewards = 1.5 - np.log1p(tokens) + skewed
    found = fit_length_curve(tokens.tolist(), rewards.tolist())
    left = rewards - found.of(tokens.tolist())
    assert found.answers == 4000
    assert 0.3 < found.explained == pytest.approx(1 - left.var() / rewards.var())

    def longer_wins(values: Any) -> float:
        one, two = np.arange(0, 4000, 2), np.arange(1, 4000, 2)
        different = tokens[one] != tokens[two]
        longer = (tokens[one] > tokens[two]) == (values[one] > values[two])
        return float(longer[different].mean())

    assert longer_wins(rewards) < 0.3
    assert longer_wins(left) == pytest.approx(0.5, abs=0.04)
    for low, high in ((1, 4), (4, 10), (10, 25), (25, 41)):
        part = (tokens >= low) & (tokens < high)
        assert np.median(left[part]) == pytest.approx(0, abs=0.25)
    assert LengthCurve().of([1, 5]).tolist() == [0.0, 0.0]
    flat = fit_length_curve([4, 4, 4], [1.0, 2.0, 5.0])
    assert flat.of([1, 4, 900]).tolist() == [2.0, 2.0, 2.0]


def test_the_noise_has_its_limits() -> None:
    found = rewards(1, 50)
    assert noise_scale(found, 0.0) == 0.0
    differences = np.array([-2.0, 0.5, 1.0])
    assert expected_agreement(differences, 0.0) == 1.0
    assert expected_agreement(differences, 1e9) == pytest.approx(0.5)
    assert preference(np.array([math.sqrt(2)]), 1.0)[0] == pytest.approx(0.8413, abs=1e-4)  # Φ(1)
    with pytest.raises(UserError, match="the same reward"):
        noise_scale([[1.0, 1.0], [0.0, 0.0]], 0.27)


def test_labelers_rank_the_queue_by_gold_and_noise(sqlite_store: Store, seed: int) -> None:
    def score(rows: list[Answered]) -> list[list[float]]:
        return [[float(text) for text in texts] for _, texts in rows]

    queue, drawn = Queue(sqlite_store), np.random.default_rng(seed)
    for number in range(60):
        texts = [f"{value:.6f}" for value in drawn.normal(size=4)]
        prompt = [{"role": "user", "content": f"question {number}"}]
        queue.add("ranking", prompt, texts, models=["m@1"] * 4, overlap=2)
    sigma = noise_scale([[*map(float, texts)] for texts in _responses(sqlite_store)], 0.27)
    labelers = Labelers(3, score, sigma, seed)
    assert labelers.work(sqlite_store, QuietProgress()) == 120
    assert labelers.work(sqlite_store, QuietProgress()) == 0
    found = statistics_of(sqlite_store)
    assert found["agreement"]["ranking"]["tasks"] == 60
    assert found["agreement"]["ranking"]["pairwise"]["value"] == pytest.approx(0.73, abs=0.06)
    assert [each["ranking"] for each in found["labelers"]] == [40, 40, 40]
    exact = Labelers(1, score, 0.0, seed)
    queue.add("ranking", [{"role": "user", "content": "last"}], ["1", "3", "2"], models=["x"] * 3)
    exact.work(sqlite_store, QuietProgress())
    (last,) = queue.done(sqlite_store.person("labeler 1").id, 1)
    assert last[0].answer["ranks"] == [3, 1, 2]


def _responses(store: Store) -> list[list[str]]:
    from sqlalchemy import select

    from lmsmith.feedback.tables import Task

    with store.session() as session:
        return list(session.scalars(select(Task.responses)))


def test_the_bootstrap_resamples_seeds_and_prompts(seed: int) -> None:
    drawn = np.random.default_rng(seed)
    values = drawn.normal(size=(3, 1)) + drawn.normal(size=(3, 300))
    found = bootstrap_two_ways(values)
    assert found.value == pytest.approx(values.mean())
    spread = values.mean(axis=1).std() / math.sqrt(3)  # seeds differ far more than prompts
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.35)
    alone = bootstrap_two_ways(values[:1])
    assert alone.high - alone.low == pytest.approx(2 * 1.96 / math.sqrt(300), rel=0.15)
    assert bootstrap_two_ways(np.zeros((2, 5))).low == 0.0


# The whole loop, on models that are made in a moment


def sentence(source: random.Random) -> str:
    return " ".join(source.choice(WORDS) for _ in range(source.randint(2, 7)))


def write_conversations(path: Path, count: int, name: str) -> None:
    source, rows = random.Random(name), []
    for number in range(count):
        messages = [
            {"role": ("user", "assistant")[turn % 2], "content": sentence(source)}
            for turn in range(6)
        ]
        rows.append({"messages": messages, "id": f"{name}{number}"})
    write_jsonl(path, rows)


def tiny_decoder(tokenizer: Tokenizer, seed: int) -> Decoder:
    """It ends its turn with about one token in eight."""
    decoder = Decoder(ModelConfig(2, 16, 2, 64, tokenizer.vocabulary_size))
    decoder.initialise(torch.Generator().manual_seed(seed))
    direction = torch.randn(16, generator=torch.Generator().manual_seed(seed + 1))
    embedding = decoder.token_embedding.weight.data
    embedding -= embedding @ direction[:, None] * direction / direction.square().sum()
    embedding[tokenizer.end_of_turn] += direction / direction.norm()
    decoder.final_norm.bias.data = 3.7 * direction / direction.norm()
    return decoder


@pytest.fixture(scope="module")
def a_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a policy, a judge and conversations."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    source = random.Random(0)
    tokenizer = Tokenizer.train([sentence(source) for _ in range(200)], 300)
    save_model(folder / "ppo/model", tiny_decoder(tokenizer, 1), tokenizer, {})
    gold = ScalarModel(tiny_decoder(tokenizer, 2))
    gold.initialise_head(torch.Generator().manual_seed(3))
    save_model(folder / "judge/model", gold, tokenizer, {})
    for name, count in (("prompts", 60), ("comparisons", 90), ("test", 12)):
        write_conversations(folder / f"data/{name}.jsonl", count, name)
    return folder


SMALL = [
    *("--prompts", "24", "--test-prompts", "24", "--votes", "30", "--gates", "shown"),
    *("--set", "machine.compile=off", "--set", "machine.threads=1"),
    *(
        "--set",
        "machine.precision=fp32",
        "--set",
        "reward.min_steps=0",
        "--set",
        "judge.min_steps=0",
    ),
    *("--set", "ppo.iterations=2", "--set", "ppo.rollouts=8", "--set", "ppo.minibatch=4"),
    *("--set", "ppo.value_warmup_iterations=1", "--set", "ppo.warmup_iterations=0"),
    *("--set", "ppo.max_prompt_tokens=30", "--set", "ppo.max_new_tokens=12"),
    *("--set", "gates.max_prompt_tokens=30", "--set", "gates.max_new_tokens=12"),
    *("--set", "reward.max_length=48", "--set", "judge.max_length=48"),
]


def simulated(
    capsys: pytest.CaptureFixture[str], run: Path, folder: Path, rounds: int
) -> dict[str, Any]:
    words = ["--folder", str(folder), "--rounds", str(rounds), "--seeds", "1"]
    assert cli.main(["simulate", str(run), *SMALL, *words, "--json"]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture(scope="module")
def two_rounds(a_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a simulation that is done."""
    folder = tmp_path_factory.mktemp("simulation")
    words = ["--folder", str(folder), "--rounds", "2", "--seeds", "1", "--quiet"]
    assert cli.main(["simulate", str(a_run), *SMALL, *words]) == 0
    return folder


KEYS = (
    *("round", "gold_reward", "gold_reward_low", "win_rate", "win_rate_low", "judgements", "kl"),
    *("agreement", "reward", "votes", "verdict"),
)


def test_the_loop_runs_end_to_end(
    a_run: Path,
    two_rounds: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(running.Simulated, "_run", None)  # nothing is done again
    found = simulated(capsys, a_run, two_rounds, 2)
    assert [row["round"] for row in found["rounds"]] == [1, 2]
    for row in found["rounds"]:
        assert set(KEYS) <= set(row)
        assert row["judgements"] >= 40
        assert row["win_rate_low"] <= row["win_rate"]
        assert row["votes"] == 30 or row["verdict"] == "promoted"
        assert row["verdict"].startswith(("promoted", "refused by votes"))
        assert 0.5 < row["agreement"] < 0.9
    assert len(found["findings"]) >= 2
    page = Path(found["report"]).read_text()
    assert Path(found["report"]).name == "simulation.html"
    assert page.count("<svg") == 2
    assert "Thurstone" in page
    assert "ppo.iterations" in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert versions.names() == []  # the user's own versions are not touched
    seed = two_rounds / "seed-1"
    with versions_in(seed / "versions"):
        assert versions.names() == ["sim"]
        made = versions.versions("sim")
        assert [each.number for each in made] == [1, 2, 3]
        assert versions.lineage_of("sim").trial is None
        promoted = {row["candidate"] for row in found["by_seed"][0][1:] if row["votes"]}
        assert promoted == {"sim@2", "sim@3"}
    with open_store(str(seed / "chat.db")) as store:
        votes = votes_on(store, "sim@2", "sim@1")
    assert len(votes.outcomes) == found["by_seed"][0][1]["votes"]["votes"]
    assert votes.repeated == 0
    assert simulated(capsys, a_run, two_rounds, 1)["rounds"] == found["rounds"][:1]


def test_another_noise_in_the_same_folder_is_refused(
    a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.Simulated, "round", lambda *_: 1 / 0)
    words = ["simulate", str(a_run), *SMALL, "--folder", str(tmp_path / "sim"), "--quiet"]
    with pytest.raises(ZeroDivisionError):
        cli.main(words)
    assert cli.main([*words, "--noise", "0.1"]) == 2
    assert "noise: was 0.27, now 0.1" in capsys.readouterr().err


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.parametrize("place", ["rankings", "record", "votes", "promotion"])
def test_what_was_killed_goes_on_to_the_same_numbers(
    place: str,
    a_run: Path,
    two_rounds: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = simulated(capsys, a_run, two_rounds, 1)

    def killed(real: Callable[..., Any], after: int) -> Callable[..., Any]:
        calls = itertools.count(1)

        def call(*given: Any, **named: Any) -> Any:
            if next(calls) > after:
                raise Killed
            return real(*given, **named)

        return call

    with monkeypatch.context() as patch:
        if place == "rankings":
            patch.setattr(Queue, "submit", killed(Queue.submit, 17))
        elif place == "record":
            patch.setattr(versions, "put_in_place", killed(versions.put_in_place, 1))
        elif place == "votes":
            patch.setattr(running, "votes_on", killed(running.votes_on, 1))
        else:
            for name in ("promote", "end_trial"):
                patch.setattr(versions, name, killed(getattr(versions, name), 0))
        with pytest.raises(Killed):
            simulated(capsys, a_run, tmp_path / "sim", 1)
    capsys.readouterr()
    again = simulated(capsys, a_run, tmp_path / "sim", 1)
    for one, other in zip(whole["rounds"], again["rounds"], strict=True):
        for name in set(one) - {"seconds"}:
            assert one[name] == pytest.approx(other[name]), name


def test_ctrl_c_is_heard_between_two_rankings(
    a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmsmith.improve.simulation import labelers

    def stop() -> None:
        raise Interrupted(2)

    monkeypatch.setattr(labelers, "stop_if_requested", stop)
    words = ["simulate", str(a_run), *SMALL, "--folder", str(tmp_path / "sim"), "--quiet"]
    assert cli.main(words) == 130
    assert "saved" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--noise", "0.5"], "--noise 0.5"),
        (["--noise", "nan"], "--noise nan"),
        (["--labelers", "1"], "--overlap 2: more than the 1 labelers"),
        (["--answers", "1"], "--answers 1"),
        (["--rounds", "0"], "--rounds 0"),
        (["--seeds", "0"], "--seeds 0"),
        (["--prompts", "9999"], "prompts and"),
    ],
)
def test_mistakes_are_told_in_one_message(
    a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    command = ["simulate", str(a_run), "--folder", str(tmp_path / "sim"), "--quiet", *words]
    assert cli.main(command) == 2
    assert said in capsys.readouterr().err


def test_a_model_without_a_judge_wants_rankings(
    a_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "alone"
    model.symlink_to(a_run / "ppo/model")
    words = ["simulate", str(model), "--data", str(a_run / "data/prompts.jsonl"), "--quiet"]
    words += ["--prompts", "2", "--rounds", "1", "--folder", str(tmp_path / "sim")]
    assert cli.main(words) == 2
    assert "no gold reward model" in capsys.readouterr().err


def test_findings_name_the_parting_of_proxy_and_gold() -> None:
    row = {
        "round": 1, "gold_reward_rise": 0.0, "gold_reward_low": 0.0, "verdict": "refused by gates",
        "candidate_gold_gain": -0.1, "candidate_gold_gain_low": -0.2,
        "candidate_gold_gain_high": 0.05, "reward": 0.4, "reward_low": 0.2,
    }  # fmt: skip
    ours = [[{"gates": {"kl": "passed", "win_rate": "failed"}, "figures": {}}]]
    first, parting = findings([row], ours)
    assert "not shown to rise" in first
    assert "win_rate (1 of 1)" in first
    assert "round 1: there proxy and gold part" in parting
    rises = row | {"gold_reward_rise": 0.3, "gold_reward_low": 0.1, "candidate_gold_gain_low": 0.1}
    assert findings([rises], ours) == ["Round 1: gold reward rises (+0.300, low end +0.100)."]


def test_a_record_of_three_seeds_and_its_page(seed: int, tmp_path: Path) -> None:
    drawn = np.random.default_rng(seed)

    def rounds(place: int) -> list[dict[str, Any]]:
        start = drawn.normal(size=50)
        better = start + 0.5 + 0.1 * drawn.normal(size=50)
        votes = {"votes": 40, "share": {"value": 0.7}, "outcome": "better"}
        common = {"agreement": {"value": 0.7}, "seconds": 60.0, "figures": {}, "pairs": 600}
        common |= {"tokens": 10.0}
        common |= {"judgements": 100, "gates": {"win_rate": "passed"}}
        start_row = {"gold": list(start), "sigma": 0.5, "seconds": 1.0, "promoted": "sim@1"}
        start_row["tokens"] = 20.0
        first = common | {
            "gold": list(better), "candidate_gold": list(better), "parent_gold": list(start),
            "reward": list(2 * better), "parent_reward": list(2 * start), "kl": 1.5,
            "votes": votes, "verdict": "promoted",
        }  # fmt: skip
        worse = list(better - 0.2)
        second = first | {
            "candidate_gold": worse, "parent_gold": list(better), "reward": list(2 * better + 1),
            "parent_reward": list(2 * better), "votes": None, "verdict": "refused by gates",
            "gates": {"win_rate": "failed"},
        }  # fmt: skip
        return [start_row, first, second if place else first | {"verdict": "promoted"}]

    plan = Plan("somewhere")
    curve = LengthCurve((1.0,), (0.0,), 0.25, 400)
    record = record_of(
        plan, round_recipe(str(RECIPE)), [rounds(place) for place in range(3)], curve
    )
    assert "25% of the variance of 400 first answers" in record["findings"][0]
    one, two = record["rounds"]
    assert one["gold_reward_low"] > 0.4
    assert one["gold_reward_rise"] == pytest.approx(0.5, abs=0.05)
    assert (one["votes"], one["verdict"]) == (120, "promoted")
    assert one["win_rate"] == pytest.approx(0.7)
    assert 0.5 < one["win_rate_low"] < 0.7
    assert one["reward"] == pytest.approx(2 * one["candidate_gold_gain"])
    assert one["reward_deviation"] == pytest.approx(2 * one["candidate_gold_gain_deviation"])
    assert (two["gold_reward_rise"], two["verdict"]) == (0.0, "1 of 3 promoted")
    assert two["kl"] == 1.5
    assert "from 20.0 to 10.0 tokens" in record["findings"][-1]
    assert "win_rate (2 of 3)" in record["findings"][2]
    page = build_simulation_page(tmp_path, record).read_text()
    assert "1 of 3 promoted" in page
    none = record_of(
        plan, round_recipe(str(RECIPE)), [[*rounds(1)[:1], rounds(1)[2]]], LengthCurve()
    )
    (alone,) = none["rounds"]
    assert (alone["win_rate"], alone["win_rate_low"], alone["votes"]) == (None, None, 0)
    assert build_simulation_page(tmp_path, none).is_file()
