"""When a PPO run goes wrong, say so in plain words and name the likely cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WINDOW = 5
"""Iterations that a judgement looks back on; one noisy iteration is no news."""

FEW_ENDED = 0.25
"""Share of replies that end by themselves below which a policy has not learnt to end one."""


def diagnose(
    history: Sequence[Mapping[str, float]], kl_budget: float = 0.0, *, ends: bool = False
) -> list[tuple[str, str]]:
    """What is going wrong at the end of a run's history, as (short name, sentence).

    Args:
        history: the metrics of every iteration so far, oldest first.
        kl_budget: KL in nats per response that should not be passed; 0 for none.
        ends: whether this is the run's last iteration, which a run shorter than the window is
            judged at, too.
    """
    if len(history) < WINDOW and not ends:
        return []

    def mean(name: str, rows: Sequence[Mapping[str, float]]) -> float:
        values = [row[name] for row in rows if name in row]
        return sum(values) / len(values) if values else float("nan")

    def recent(name: str) -> float:
        return mean(name, history[-WINDOW:])

    def early(name: str) -> float:
        return mean(name, history[:WINDOW])

    found: list[tuple[str, str]] = []
    kl = recent("objective/kl")
    if kl < -0.1:
        found.append(
            (
                "negative_kl",
                f"KL is {kl:.2f} nats, below zero, which a true KL never is: responses are not "
                "drawn from the distribution the log-probabilities are of. Look for top-p, top-k "
                "or a temperature used in sampling only, or padding counted as tokens.",
            )
        )
    if kl_budget and kl > kl_budget:
        found.append(
            (
                "kl_over_budget",
                f"KL is {kl:.1f} nats a response, over its budget of {kl_budget:g}: the policy has "
                "left the texts the reward model knows. Raise kl_coefficient, lower the learning "
                "rate, or set kl_control to adaptive.",
            )
        )
    before, now = early("policy/entropy_avg"), recent("policy/entropy_avg")
    if now < 0.4 * before:
        found.append(
            (
                "entropy_collapse",
                f"entropy fell from {before:.2f} to {now:.2f} nats a token: replies are becoming "
                "the same. The usual causes are too high a learning rate or too small a "
                "kl_coefficient.",
            )
        )
    before, now = early("objective/response_tokens"), recent("objective/response_tokens")
    if now > 1.6 * before or now < before / 1.6:
        found.append(
            (
                "length_drift",
                f"replies went from {before:.0f} to {now:.0f} tokens: the reward model probably "
                "prefers a length. Look at reward.longer_wins_accuracy and the length-controlled "
                "win rate.",
            )
        )
    clipped = recent("policy/clipfrac_avg")
    if clipped > 0.3:
        found.append(
            (
                "clipping",
                f"{clipped:.0%} of the tokens are clipped: updates are too large for the batch. "
                "Lower the learning rate or ppo_epochs.",
            )
        )
    ended, ended_before = recent("val/share_ended"), early("val/share_ended")
    if ended < FEW_ENDED and ended_before < FEW_ENDED:
        found.append(
            (
                "never_ended",
                f"only {ended:.1%} of the replies end by themselves, and few ever did: the policy "
                "rarely ends a reply, and what breaks off teaches little. Train SFT for "
                "more steps (raise sft.epochs), or raise max_new_tokens.",
            )
        )
    elif ended < 0.5 and ended < 0.7 * ended_before:
        found.append(
            (
                "no_end",
                f"only {ended:.0%} of the replies end by themselves: raise missing_eos_penalty or "
                "max_new_tokens.",
            )
        )
    if recent("objective/scores_std") == 0.0:
        found.append(
            (
                "equal_rewards",
                "every reply has the same reward, so that there is nothing to learn from: look at "
                "the reward function, or train the reward model for longer.",
            )
        )
    return found


def diagnose_frontier(points: Sequence[Mapping[str, float]]) -> str | None:
    """Whether the reward rose while the judge's score fell, as a sentence; None if not.

    The mark of over-optimisation (Gao et al. 2023, section 3): told where the judge ends below
    where it began, or falls at each of the last two steps along the way.

    Args:
        points: ``reward`` and ``judge``, mean scores at growing KL, the first of the SFT model.
    """
    if len(points) < 2 or not all({"reward", "judge"} <= set(point) for point in points):
        return None
    rewards, judged = [p["reward"] for p in points], [p["judge"] for p in points]
    falls = judged[-1] < judged[0]
    if len(points) >= 4:
        falls = falls or (judged[-1] < judged[-2] < judged[-3] and rewards[-1] > rewards[-3])
    if rewards[-1] <= rewards[0] or not falls:
        return None
    best = points[max(range(len(points)), key=judged.__getitem__)]
    return (
        f"the reward rose from {rewards[0]:.2f} to {rewards[-1]:.2f} while the judge's score, best "
        f"at a KL of {best.get('kl', float('nan')):.1f} nats, fell: the policy exploits the reward "
        "model. Stop earlier, raise ppo.kl_coefficient, or train the reward model on the policy's "
        "own replies."
    )
