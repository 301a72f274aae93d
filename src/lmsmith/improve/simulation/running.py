"""The loop without people: labelers rank, a round makes a version, gates and votes decide.

A gold reward model, which was trained on conversations that nothing else here saw, defines quality.
Nothing learns from it: labelers rank by it with noise, in the real queue and database, and the
rounds read what they said as they read what people said. Each seed has a folder of its own with
its database, its versions, and a file for every step that is done, so that a kill costs one step.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select

from lmsmith.catalogue import versions
from lmsmith.catalogue.versions import Version
from lmsmith.comparison.score import score_responses
from lmsmith.core.config import encode
from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, read_json, write_json
from lmsmith.core.paths import versions_in
from lmsmith.core.progress import QuietProgress, RunProgress
from lmsmith.core.recipe import Recipe
from lmsmith.feedback.collect import collect
from lmsmith.feedback.queue import Queue
from lmsmith.feedback.sample import SampledPrompt, fill_queue
from lmsmith.feedback.store import Store, open_store
from lmsmith.feedback.tables import Task
from lmsmith.feedback.votes import votes_on
from lmsmith.generation.engine import generate
from lmsmith.generation.settings import SamplingSettings
from lmsmith.improve import round as rounds_of
from lmsmith.improve.simulation.findings import record_of
from lmsmith.improve.simulation.labelers import Answered, Labelers, noise_scale
from lmsmith.improve.simulation.world import ASKED, Plan, World, make_world
from lmsmith.improve.simulation.writers import writer_ahead
from lmsmith.improve.snapshot import SIDES_FILE, read_sides
from lmsmith.improve.summary import summarise
from lmsmith.models.folder import load_decoder, load_scalar_model, load_tokenizer
from lmsmith.rlhf.rollout import response_log_likelihoods
from lmsmith.runs.locking import locked
from lmsmith.runs.records import read_record, recorded_seconds
from lmsmith.runs.signals import StopSignal, stop_if_requested
from lmsmith.runs.stage_folder import derive_seed
from lmsmith.statistics.sequential import SequentialTest

NAME = "sim"
"""The name of the versions."""

PLAN_FILE = "simulation.json"
SAMPLES = 2
"""Answers to each test prompt."""
VOTES_AT_ONCE = 50
"""Votes between two looks at the test."""


def simulate(
    plan: Plan,
    recipe: Recipe,
    folder: Path,
    *,
    rounds: int = 3,
    seeds: int = 3,
    progress: Callable[[str], RunProgress] = lambda _: QuietProgress(),
) -> dict[str, Any]:
    """Run what is not done yet of a simulation, and return its record (`record_of`).

    Args:
        plan: its settings.
        recipe: of a round (`lmsmith.improve.round.round_recipe`).
        folder: of the simulation.
        rounds: of each seed.
        seeds: so many simulations that differ in their seed alone.
        progress: makes the progress of a part from its title.

    Raises:
        UserError: the folder holds a simulation with other settings, too few prompts, no gold
            reward model, or a round's own.
        Interrupted: a signal asked to stop; the same command goes on.
    """
    plan.check()
    for name, count in (("rounds", rounds), ("seeds", seeds)):
        if count < 1:
            raise UserError(f"--{name} {count}: expected 1 or more")
    folder = folder.absolute()
    said = {"plan": encode(plan), "recipe": recipe.as_dict()}
    found = []
    with StopSignal(), locked(folder, QuietProgress()):
        _refuse_others(folder / PLAN_FILE, said)
        world = make_world(plan, recipe, folder, progress("simulate: gold reward model"), rounds)
        write_json(folder / PLAN_FILE, said)
        for seed in range(1, seeds + 1):
            home = folder / f"seed-{seed}"
            database = str(home / "chat.db")
            with versions_in(home / "versions"), open_store(database, new=True) as store:
                simulated = Simulated(world, seed, home, store, progress)
                found.append([simulated.round(number) for number in range(rounds + 1)])
    record = record_of(plan, recipe, found, world.curve)
    write_json(folder / "results.json", record)
    return record


def _refuse_others(path: Path, said: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises UserError where the folder's settings are others."""
    kept: Any = read_json(path) if path.is_file() else said
    for part, values in said.items():
        for name, value in values.items():
            if kept[part].get(name) != value:
                raise UserError(
                    f"{path.parent}: holds a simulation with other settings ({part}, {name}: was "
                    f"{kept[part].get(name)}, now {value})",
                    "name another --folder, or remove that folder",
                )


@dataclass
class Simulated:
    """The simulation of one seed; round 0 is the model that it begins with.

    Attributes:
        world: what all seeds share.
        seed: of prompts, answers, labelers and rounds.
        home: its folder.
        store: its database.
        progress: makes the progress of a part from its title.
    """

    world: World
    seed: int
    home: Path
    store: Store
    progress: Callable[[str], RunProgress]
    _title: str = field(default="", init=False)

    def round(self, number: int) -> dict[str, Any]:
        """What came of a round: from its file, or run now.

        Returns:
            ``round``, ``judgements``, ``pairs``, ``agreement``, ``candidate``, ``promoted`` (words
            of versions), ``gates`` (name → state), ``votes`` (None where nobody was asked),
            ``verdict``, ``gold`` and ``candidate_gold`` (a mean for each test prompt), ``reward``
            and ``parent_reward`` (the same by the round's reward model), ``kl``, ``tokens`` (of an
            answer), ``figures``, ``seconds``. Round 0 has the first and the last few of them.
        """
        path = self.home / f"round-{number}.json"
        if not path.is_file():
            self._title = f"simulate: seed {self.seed}, round {number}"
            write_json(path, self._run(number) if number else self._start())
        found: dict[str, Any] = read_json(path)  # type: ignore[assignment]
        return found

    def _start(self) -> dict[str, Any]:
        began = time.monotonic()
        if versions.find(NAME) is None:
            rounds_of.first_version(self.world.plan.model, NAME, "lmsmith simulate")
        gold = _means(self._measured(1)["gold"])
        return {
            "round": 0,
            "promoted": f"{NAME}@1",
            "gold": gold,
            "kl": 0.0,
            "tokens": self._measured(1)["tokens"],
            "sigma": self._labelers.sigma,
            "seconds": time.monotonic() - began,
        }

    def _run(self, number: int) -> dict[str, Any]:
        """One round: answers are ranked, a version is made and judged, and promoted or refused."""
        parent = versions.promoted(NAME)
        judged = self._step(number, "judged", partial(self._judge, number, parent))
        made = self._made(number)
        parent = versions.version(NAME, made.parents[0])
        asked = made.verdict != "refused" or self.world.plan.gates == "shown"
        voted = {"votes": None}
        if asked:
            voted = self._step(number, "voted", partial(self._vote, number, parent, made))
        votes: Any = voted["votes"]
        if votes is not None and votes["outcome"] == "better":
            versions.promote(NAME, made.number, "votes", f"{votes['share']['value']:.1%} of votes")
        elif versions.lineage_of(NAME).trial is not None:
            versions.end_trial(NAME)
        promoted = versions.promoted(NAME)
        measured, reward_of = self._measured(made.number), self._rewards(parent, made)
        records = [read_record(each) for each in made.folder.glob("*/stage.json")]
        seconds = sum(map(recorded_seconds, records)) + judged.pop("seconds")
        return {
            "round": number,
            **judged,
            "candidate": made.word,
            "promoted": promoted.word,
            "gates": {gate.name: gate.state for gate in made.gates},
            "gates_verdict": made.verdict,
            "votes": votes,
            "verdict": _verdict(votes),
            "gold": _means(self._measured(promoted.number)["gold"]),
            "candidate_gold": _means(measured["gold"]),
            "parent_gold": _means(self._measured(parent.number)["gold"]),
            **reward_of,
            "kl": float(np.mean(self._measured(promoted.number)["kl"])),
            "tokens": self._measured(promoted.number)["tokens"],
            "candidate_kl": float(np.mean(measured["kl"])),
            "figures": made.figures,
            "seconds": seconds + voted.get("seconds", 0.0) + measured["seconds"],
        }

    def _step(
        self, number: int, name: str, make: Callable[[RunProgress], dict[str, Any]]
    ) -> dict[str, Any]:
        """A step's result: from its file, or made now."""
        path = self.home / f"steps/{number}-{name}.json"
        if not path.is_file():
            stop_if_requested()
            began, progress = time.monotonic(), self.progress(f"{self._title}: {name}")
            found = make(progress)
            progress.close()
            write_json(path, found | {"seconds": time.monotonic() - began})
        result: dict[str, Any] = read_json(path)  # type: ignore[assignment]
        return result

    # Labelers

    @cached_property
    def _labelers(self) -> Labelers:
        plan, first = self.world.plan, self._measured(1)
        # The queue takes no empty answers, and no two that are the same.
        ranked = [
            list({text: gold for text, gold in zip(*row, strict=True) if text}.values())
            for row in zip(first["texts"], first["gold"], strict=True)
        ]
        sigma = noise_scale(ranked, plan.noise)
        return Labelers(plan.labelers, self.world.score, sigma, derive_seed(self.seed, "labelers"))

    @cached_property
    def _prompts(self) -> tuple[list[SampledPrompt], list[SampledPrompt]]:
        """Prompts to rank answers to, and prompts to vote on, in this seed's order."""
        found = [SampledPrompt(each.prompt) for each in self.world.fresh]
        random.Random(derive_seed(self.seed, "prompts")).shuffle(found)
        voted = [each for place, each in enumerate(found) if place % ASKED]
        return found[::ASKED], voted

    def _fill(
        self,
        prompts: Sequence[SampledPrompt],
        writers: Sequence[Version],
        answers: int,
        overlap: int,
        progress: RunProgress,
    ) -> None:
        """Put answers of versions into the queue, and have them ranked."""
        world, words = self.world, [each.word for each in writers]
        settings = SamplingSettings(world.max_new_tokens, world.temperature)
        seed = derive_seed(self.seed, "answers", *words)
        known = self._asked(words)
        each_writes = answers // len(writers)
        fill_queue(
            Queue(self.store),
            prompts,
            {
                each.word: writer_ahead(
                    each, prompts, known, each_writes, seed, world.machine, settings
                )
                for each in writers
            },
            kind="ranking",
            answers=answers,
            overlap=overlap,
            seed=seed,
            progress=progress,
        )
        self._labelers.work(self.store, progress)

    def _asked(self, words: Sequence[str]) -> set[str]:
        """Fingerprints of the prompts that these versions have answered in the queue."""
        with self.store.session() as session:
            tasks = session.execute(select(Task.prompt, Task.models))
            return {fingerprint(row[0]) for row in tasks if set(row[1]) == set(words)}

    def _judge(self, number: int, parent: Version, progress: RunProgress) -> dict[str, Any]:
        """Answers of the newest policy to fresh prompts, ranked by labelers."""
        plan = self.world.plan
        chosen = self._prompts[0][(number - 1) * plan.prompts : number * plan.prompts]
        self._fill(chosen, [parent], plan.answers, plan.overlap, progress)
        found = collect(self.store).judgements
        known = read_sides(versions.folder_of(NAME) / str(number) / "data" / SIDES_FILE)
        summary = summarise([each for each in found if each.id not in known], {})
        return {
            "judgements": sum(summary.counts[kind] for kind in ("ranking", "comparison")),
            "pairs": summary.pairs,
            "agreement": None if summary.agreement is None else asdict(summary.agreement),
        }

    def _made(self, number: int) -> Version:
        """The round's version: it is made once, whatever ends this process."""
        if versions.next_number(NAME) > number + 1:
            return versions.version(NAME, number + 1)
        recipe = replace(self.world.recipe, seed=self.world.recipe.seed + 1000 * self.seed + number)
        return rounds_of.improve(
            NAME,
            rounds_of.Sources(str(self.home / "chat.db")),
            recipe,
            force=True,
            progress=self.progress(self._title),
        )

    def _vote(
        self, number: int, parent: Version, made: Version, progress: RunProgress
    ) -> dict[str, Any]:
        """Labelers vote until the test decides or the prompts end; each votes on a new prompt."""
        plan, test = self.world.plan, SequentialTest(max_votes=self.world.plan.votes)
        versions.set_trial(NAME, made.number, 1.0, test, refused=True)
        before = (number - 1) * plan.votes
        prompts = self._prompts[1][before : before + plan.votes]
        place = 0
        while True:
            votes = votes_on(self.store, made.word, parent.word)
            decision = votes.decision(test)
            if decision.outcome != "undecided" or place >= len(prompts):
                return {"votes": asdict(decision) | {"people": votes.people}}
            part = prompts[place : place + VOTES_AT_ONCE]
            self._fill(part, [made, parent], 2, 1, progress)
            place += len(part)

    # Measures

    def _measured(self, number: int) -> dict[str, Any]:
        """A version's answers to the test prompts, their gold reward, and KL from the start."""
        path = self.home / f"measured/{number}.json"
        if not path.is_file():
            stop_if_requested()
            began, progress = time.monotonic(), self.progress(self._title)
            count = f"{len(self.world.held_out):,} test prompts"
            progress.note(f"{NAME}@{number}: {SAMPLES} answers to each of {count}")
            found = self._measure(versions.version(NAME, number))
            progress.close()
            write_json(path, found | {"seconds": time.monotonic() - began})
        result: dict[str, Any] = read_json(path)  # type: ignore[assignment]
        return result

    def _measure(self, version: Version) -> dict[str, Any]:
        world = self.world
        settings = SamplingSettings(
            max_new_tokens=world.max_new_tokens + 1,
            temperature=world.temperature,
            stop_tokens=world.tokenizer.stop_tokens,
            seed=derive_seed(self.seed, "measured"),
        )
        asked = [each.tokens for each in world.held_out for _ in range(SAMPLES)]
        decoder = load_decoder(version.path)
        replies = generate(
            decoder, asked, settings, machine=world.machine, tokenizer=world.tokenizer
        )
        start = load_decoder(versions.version(NAME, 1).path)
        sampled = asked, replies, world.machine, world.temperature, world.tokenizer
        ours, theirs = (response_log_likelihoods(each, *sampled) for each in (decoder, start))
        texts = _rows([world.tokenizer.decode(each).strip() for each in replies])
        return {
            "texts": texts,
            "gold": world.score(self._answered(texts)),
            "kl": _rows((ours - theirs).tolist()),
            "tokens": sum(map(len, replies)) / len(replies),
        }

    def _answered(self, texts: Sequence[list[str]]) -> list[Answered]:
        prompts = (each.prompt for each in self.world.held_out)
        return list(zip(prompts, texts, strict=True))

    def _rewards(self, parent: Version, made: Version) -> dict[str, Any]:
        """Means for each test prompt of the round's reward model: candidate, and parent."""
        folder = made.folder / "reward/model"
        if not (folder / "config.json").is_file():
            return {"reward": None, "parent_reward": None}
        model, tokenizer = load_scalar_model(folder), load_tokenizer(folder)
        machine = self.world.machine
        found = [
            _means(score_responses(model, tokenizer, self._answered(texts), machine))
            for texts in (self._measured(each.number)["texts"] for each in (made, parent))
        ]
        return {"reward": found[0], "parent_reward": found[1]}


def _rows(values: Sequence[Any]) -> list[list[Any]]:
    """Values of all answers, `SAMPLES` in a row."""
    return [list(values[start : start + SAMPLES]) for start in range(0, len(values), SAMPLES)]


def _means(rows: Sequence[Sequence[float]]) -> list[float]:
    return [float(np.mean(row)) for row in rows]


def _verdict(votes: Mapping[str, Any] | None) -> str:
    """``promoted``, or by what the candidate is refused."""
    if votes is None:
        return "refused by gates"
    return "promoted" if votes["outcome"] == "better" else f"refused by votes: {votes['outcome']}"
