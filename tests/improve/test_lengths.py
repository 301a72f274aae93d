"""Long prompts of real judgements are not left out of a round unseen."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from improve.tiny_round import SMALL, make_model, write_data
from lmsmith.core.paths import versions_in
from lmsmith.corpus.judgements import Judgement
from lmsmith.improve import round as rounds
from lmsmith.improve.prospect import Sources
from lmsmith.improve.recipe import round_recipe
from lmsmith.models.folder import load_tokenizer

SHORT = ("reward.max_length=24", "judge.max_length=24", "gates.max_prompt_tokens=8")


def fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opening: str, chosen: Sequence[str] = ()
) -> dict[str, Any]:
    """The settings with which a round's stages run, which do not run.

    The shipped recipe is `SMALL` and `SHORT` here.
    """
    data = Path(write_data(tmp_path / "data"))
    rows = [json.loads(line) for line in (data / "rankings.jsonl").read_text().splitlines()]
    for number, row in enumerate(rows):
        said = {"role": "user", "content": f"{number} {opening}"}  # so they begin differently
        earlier = [said, {"role": "assistant", "content": "yes"}]
        row["prompt"] = [*earlier, {"role": "user", "content": opening + row["prompt"]}]
    (data / "rankings.jsonl").write_text("\n".join(map(json.dumps, rows)))
    taken: list[Any] = []

    class Stopped(Exception):
        pass

    def stop(recipe: Any, *_: Any, **__: Any) -> None:
        taken.append(recipe)
        raise Stopped

    monkeypatch.setattr(rounds, "run_recipe", stop)
    monkeypatch.setattr(rounds, "round_recipe", lambda: round_recipe("", [*SMALL, *SHORT]))
    with versions_in(tmp_path / "versions"), pytest.raises(Stopped):
        rounds.improve(
            make_model(tmp_path / "model"),
            Sources(data=(str(data),)),
            round_recipe("", [*SMALL, *SHORT, *chosen]),
            name="long",
            force=True,
        )
    return dict(taken[0].stages)


def test_lengths_are_raised_to_what_the_judgements_need(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = fitted(tmp_path, monkeypatch, "the cat sat on the mat " * 4)
    # 24 words of a prompt's last message, and a response; earlier turns may go.
    assert 40 < stages["reward"].max_length <= 90
    assert stages["judge"].max_length == stages["reward"].max_length
    assert 30 < stages["gates"].max_prompt_tokens < stages["reward"].max_length
    assert stages["ppo"].max_prompt_tokens == stages["gates"].max_prompt_tokens


def test_lengths_that_somebody_chose_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ("reward.max_length=40", "gates.max_prompt_tokens=9", "ppo.max_prompt_tokens=10")
    stages = fitted(tmp_path, monkeypatch, "the cat sat on the mat " * 4, chosen)
    assert stages["reward"].max_length == 40
    assert stages["judge"].max_length > 40
    assert stages["gates"].max_prompt_tokens == 9
    assert stages["ppo"].max_prompt_tokens == 10


def test_adapters_that_nobody_chose_learn_faster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "ADAPTERS_FROM", 1)
    chosen = ("ppo.optimiser.learning_rate=3e-5", "judge.epochs=0", "sft.adapter.rank=4")
    stages = fitted(tmp_path, monkeypatch, "the cat", chosen)
    shipped = round_recipe("", [*SMALL, *SHORT]).stages
    rate = shipped["reward"].optimiser.learning_rate  # type: ignore[attr-defined]
    assert stages["reward"].adapter.rank == rounds.ADAPTER_RANK
    assert stages["reward"].optimiser.learning_rate == rounds.ADAPTER_RATE * rate
    rate = shipped["ppo"].value_optimiser.learning_rate  # type: ignore[attr-defined]
    assert stages["ppo"].value_optimiser.learning_rate == rounds.ADAPTER_RATE * rate
    assert stages["ppo"].optimiser.learning_rate == 3e-5
    assert stages["judge"].adapter.rank == 0  # its head alone is fitted
    assert stages["sft"].adapter.rank == 4
    assert stages["sft"].optimiser == shipped["sft"].optimiser  # type: ignore[attr-defined]


def test_the_context_is_the_limit_and_short_prompts_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = fitted(tmp_path / "a", monkeypatch, "the cat sat on the mat " * 30)
    assert stages["reward"].max_length == 128
    assert stages["gates"].max_prompt_tokens == 128 - stages["gates"].max_new_tokens - 1
    recipe = round_recipe("", SMALL)
    small = replace(recipe.stages["gates"], max_prompt_tokens=100)
    needed = rounds._Needed(prompt=20, judged=30)
    shape = type("Shape", (), {"context": 128, "parameters": 1000})
    found = rounds._fitted_to(shape, "gates", small, small, needed)  # type: ignore[arg-type]
    assert found.max_prompt_tokens == 100


def test_a_prompt_that_no_template_takes_stops_no_round(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(Path(make_model(tmp_path / "model")))
    good = [{"role": "user", "content": "Where is the cat?"}]
    bad = [{"role": "assistant", "content": "here"}]
    judged = [
        Judgement(str(n), "ranking", p, ["a", "b"], [1, 2]) for n, p in enumerate((good, bad))
    ]
    assert rounds._needed(tokenizer, judged) == rounds._needed(tokenizer, judged[:1])
    assert rounds._needed(tokenizer, judged[1:]) == rounds._Needed(0, 0)
