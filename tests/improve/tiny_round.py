"""A round of a few seconds: a tiny model, and judgements of people about it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmsmith import improvement
from lmsmith.catalogue import versions
from lmsmith.tokenizers import Tokenizer
from tiny_models import TEXTS, tiny_subject

SMALL = (
    "sft.epochs=1",
    "sft.batch_tokens=256",
    "sft.validations=1",
    "sft.min_steps=0",
    "reward.min_steps=0",
    "judge.min_steps=0",
    "reward.batch_prompts=16",
    "reward.validations=1",
    "judge.batch_prompts=16",
    "judge.validations=1",
    "ppo.iterations=2",
    "ppo.rollouts=8",
    "ppo.minibatch=8",
    "ppo.max_new_tokens=8",
    "ppo.max_prompt_tokens=32",
    "ppo.value_warmup_iterations=0",
    "ppo.warmup_iterations=0",
    "gates.max_prompts=16",
    "gates.max_new_tokens=8",
    "gates.min_prompts=8",
    "gates.min_pairs=8",
    "gates.tasks=[]",
    "gates.safety=[]",
)


def make_model(folder: Path) -> str:
    """A tiny model with random weights; its path."""
    tiny_subject(folder, Tokenizer.train(TEXTS, 330), context=128)
    return str(folder)


def write_data(folder: Path, count: int = 90, people: int = 3) -> str:
    """Rankings and demonstrations in files of ``feedback export``; the folder's path."""
    folder.mkdir(parents=True, exist_ok=True)
    rankings = [
        {
            "prompt": f"Where is the cat number {number}?",
            "responses": [f"the cat {number} sat on the mat", "blue blue blue"],
            "ranks": [1, 2],
            "labeler": f"p{number % people}",
        }
        for number in range(count)
    ]
    said = [
        {
            "messages": [
                {"role": "user", "content": f"What is the colour of the sky, {number}?"},
                {"role": "assistant", "content": f"The sky is blue, {number}."},
            ]
        }
        for number in range(count // 2)
    ]
    for name, rows in (("rankings", rankings), ("conversations", said)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return str(folder)


def run_round(model: str, data: str, name: str, **given: Any) -> improvement.Improvement:
    """Make the next version, with little of everything."""
    settings: Sequence[str] = (*SMALL, *given.pop("set", ()))
    given = {"force": True, "quiet": True, **given}
    return improvement.improve(model, data=[data] if data else [], name=name, set=settings, **given)


def _die_at(moment: str) -> None:
    """End this process by SIGKILL when it comes to a moment of a round."""
    from lmsmith.improve import gates, round, snapshot, under_way
    from lmsmith.stages import reward, sft

    def die(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    def after(call: Any) -> Any:
        return lambda *given, **named: (call(*given, **named), die())

    places: dict[str, tuple[Any, str, Any]] = {
        "first version": (versions, "found_lineage", die),
        "freeze": (under_way, "freeze", after(under_way.freeze)),
        "data": (snapshot, "ranking_row", die),
        "sft": (sft, "save_model", die),
        "reward": (reward, "save_model", die),
        "gates": (gates._Measured, "win_rates", die),
        "record": (versions, "write_version", die),
        "recorded": (versions, "write_version", after(versions.write_version)),
        "put_in_place": (versions, "put_in_place", after(versions.put_in_place)),
        "announced": (round, "write_json", die),
    }
    owner, name, act = places[moment]
    if moment == "announced":
        real = round.write_json
        act = lambda path, value: die() if path.name == round.ANNOUNCED else real(path, value)  # noqa: E731
    if moment in ("first version", "record", "recorded"):
        real_write = getattr(owner, name)
        number = 1 if moment == "first version" else 2

        def only(*given: Any, **named: Any) -> Any:
            made = next(each for each in given if isinstance(each, versions.Version))
            return (act if made.number == number else real_write)(*given, **named)

        setattr(owner, name, only)
        return
    setattr(owner, name, act)


def _run_killed(moment: str, model: str, data: str, name: str) -> int:
    """Run a round in a process of its own that dies at a moment; the signal that ended it, or 0."""
    child = os.fork()
    if not child:
        _die_at(moment)
        run_round(model, data, name)
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    model, data, name, *moments = sys.argv[1:]
    for moment in moments:
        print(moment, _run_killed(moment, model, data, name), versions.names(), flush=True)
