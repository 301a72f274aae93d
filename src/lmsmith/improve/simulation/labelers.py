"""Synthetic labelers: they take people's place in a simulation, and disagree as people do.

This is Thurstone's model, case V (1927). Of a response with the gold reward g a labeler sees
g + σε, where ε is drawn from N(0, 1) for each labeler, prompt and response, and ranks by what they
see. So they prefer the better of two responses, whose rewards differ by d, with the probability

    p = Φ(d / (σ√2)),

and two labelers agree with the probability p² + (1 − p)². σ is chosen so that the mean of this over
the pairs of a sample is the stated agreement, and stays the same in all rounds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy import func, select

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint
from lmsmith.core.progress import Progress
from lmsmith.feedback.queue import AssignedTask, Queue
from lmsmith.feedback.store import Store
from lmsmith.feedback.tables import Assignment, Task
from lmsmith.runs.signals import stop_if_requested
from lmsmith.runs.stage_folder import derive_seed
from lmsmith.statistics.intervals import Floats

Answered = tuple[list[dict[str, str]], list[str]]
"""A prompt and responses to it."""

Scorer = Callable[[Sequence[Answered]], list[list[float]]]
"""Gives every response its gold reward."""

_erf = np.frompyfunc(math.erf, 1, 1)


def preference(differences: Floats, sigma: float) -> Floats:
    """Φ(d / (σ√2)), the probability that a labeler prefers the first of two responses."""
    if sigma == 0:
        return np.asarray((np.sign(differences) + 1) / 2)
    return np.asarray(0.5 + 0.5 * _erf(differences / (2 * sigma)), np.float64)


def expected_agreement(differences: Floats, sigma: float) -> float:
    """The mean of p² + (1 − p)² over pairs."""
    chance = preference(differences, sigma)
    return float(np.mean(chance**2 + (1 - chance) ** 2))


def noise_scale(rewards: Sequence[Sequence[float]], noise: float) -> float:
    """σ with which two labelers disagree on the share ``noise`` of the pairs of each row.

    Args:
        rewards: gold rewards of several responses to each prompt.
        noise: 0 up to, and not with, ½.

    Raises:
        UserError: no two responses to a prompt have different rewards.
    """
    found = [a - b for row in rewards for a, b in itertools.combinations(row, 2)]
    differences = np.asarray([each for each in found if each], np.float64)
    if not differences.size:
        raise UserError(
            "the gold reward model gives all responses to a prompt the same reward",
            "name another one: --gold",
        )
    if noise == 0:
        return 0.0
    scale = float(np.abs(differences).mean())
    low, high = 1e-6 * scale, 1e6 * scale
    for _ in range(80):
        middle = math.sqrt(low * high)
        if expected_agreement(differences, middle) > 1 - noise:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


@dataclass(frozen=True)
class Labelers:
    """Labelers of a queue.

    Attributes:
        count: how many there are.
        score: the gold reward.
        sigma: deviation of what they see from it.
        seed: of what they see, which depends on nothing else than labeler, prompt and response.
    """

    count: int
    score: Scorer
    sigma: float
    seed: int

    def work(self, store: Store, progress: Progress) -> int:
        """Rank until the queue has nothing left for any of them; returns the number of answers.

        The next is the one who has finished the fewest: so who gets which task depends on the
        database alone, also after a kill.
        """
        queue = Queue(store)
        waiting = _waiting(store)
        scores = self.score([(task.prompt, task.responses) for task in waiting])
        known = {task.id: row for task, row in zip(waiting, scores, strict=True)}
        names = [f"labeler {number + 1}" for number in range(self.count)]
        people = {name: store.person(name, "labeler").id for name in names}
        finished: dict[str, int] = {
            name: queue.progress(people[name])["ranking"]["done"] for name in names
        }
        before = sum(finished.values())
        progress.begin("rankings", sum(task.overlap for task in waiting), "rankings")
        while names:
            stop_if_requested()
            name = min(names, key=lambda each: finished[each])
            found = queue.next(people[name], "ranking")
            if found is None:
                names.remove(name)
                continue
            assignment, task = found
            if task.id not in known:  # begun before a kill, and done by somebody else since
                (known[task.id],) = self.score([(task.prompt, task.responses)])
            ranks = self.ranks(name, found, known[task.id])
            queue.submit(people[name], assignment.id, {"ranks": ranks})
            finished[name] += 1
            progress.update(sum(finished.values()) - before)
        progress.end()
        return sum(finished.values()) - before

    def ranks(self, name: str, held: AssignedTask, rewards: Sequence[float]) -> list[int]:
        """A labeler's ranks, in the order in which the responses are shown."""
        assignment, task = held
        seen = self.seen(name, task.prompt, task.responses, rewards)
        return [1 + sum(other > seen[place] for other in seen) for place in assignment.shown]

    def seen(
        self,
        name: str,
        prompt: Sequence[dict[str, str]],
        responses: Sequence[str],
        rewards: Sequence[float],
    ) -> list[float]:
        """Gold rewards as a labeler sees them."""
        key = fingerprint(list(prompt))
        return [
            reward
            + self.sigma
            * float(
                np.random.default_rng(derive_seed(self.seed, name, key, text)).standard_normal()
            )
            for text, reward in zip(responses, rewards, strict=True)
        ]


def _waiting(store: Store) -> list[Task]:
    """Rankings that want more answers."""
    done = (
        select(func.count())
        .where(Assignment.task_id == Task.id, Assignment.state == "done")
        .correlate(Task)
        .scalar_subquery()
    )
    with store.session() as session:
        query = select(Task).where(Task.kind == "ranking", done < Task.overlap).order_by(Task.id)
        return list(session.scalars(query))
