"""When a PPO run goes wrong, say so in plain words and name the likely cause."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

WINDOW = 5
"""Iterations that a diagnosis averages; one may be noise."""

FEW_ENDED = 0.25
"""A policy with a smaller share of replies that end by themselves has not learnt to end one."""

WIDE_GAP = 0.1
"""Nats a token; rounding to bf16 makes a few hundredths."""


def diagnose(
    history: Sequence[Mapping[str, float]], kl_budget: float = 0.0, *, ends: bool = False
) -> list[tuple[str, str]]:
    """Problems at the end of a run's history, as (short name, sentence).

    Args:
        history: the metrics of every iteration so far, oldest first.
        kl_budget: most KL in nats per response; 0 for no limit.
        ends: whether the run ends here; a run shorter than the window is diagnosed at its end.
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

    kl, clipped = recent("objective/kl"), recent("policy/clipfrac_avg")
    entropies = early("policy/entropy_avg"), recent("policy/entropy_avg")
    lengths = early("objective/response_tokens"), recent("objective/response_tokens")
    ended, ended_before = recent("val/share_ended"), early("val/share_ended")
    few_ended = ended < FEW_ENDED and ended_before < FEW_ENDED
    rules = (
        (
            "negative_kl",
            kl < -0.1,
            f"KL is {kl:.2f} nats, below zero, which a true KL never is: responses are not "
            "drawn from the distribution the log-probabilities are of. Look for top-p, top-k "
            "or a temperature used in sampling only, or padding counted as tokens.",
        ),
        (
            "kl_over_budget",
            bool(kl_budget) and kl > kl_budget,
            f"KL is {kl:.1f} nats a response, over its budget of {kl_budget:g}: the policy has "
            "left the texts the reward model knows. Raise kl_coefficient, lower the learning "
            "rate, or set kl_control to adaptive.",
        ),
        (
            "entropy_collapse",
            entropies[1] < 0.4 * entropies[0],
            f"entropy fell from {entropies[0]:.2f} to {entropies[1]:.2f} nats a token: replies are "
            "becoming the same. The usual causes are too high a learning rate or too small a "
            "kl_coefficient.",
        ),
        (
            "length_drift",
            lengths[1] > 1.6 * lengths[0] or lengths[1] < lengths[0] / 1.6,
            f"replies went from {lengths[0]:.0f} to {lengths[1]:.0f} tokens: the reward model "
            "probably prefers a length. Look at reward.longer_wins_accuracy and the "
            "length-controlled win rate.",
        ),
        (
            "clipping",
            clipped > 0.3,
            f"{clipped:.0%} of the tokens are clipped: updates are too large for the batch. "
            "Lower the learning rate or ppo_epochs.",
        ),
        (
            "never_ended",
            few_ended,
            f"only {ended:.1%} of the replies end by themselves, and few ever did: the policy "
            "rarely ends a reply, and what breaks off teaches little. Train SFT for "
            "more steps (raise sft.epochs), or raise max_new_tokens.",
        ),
        (
            "no_end",
            not few_ended and ended < 0.5 and ended < 0.7 * ended_before,
            f"only {ended:.0%} of the replies end by themselves: raise missing_eos_penalty or "
            "max_new_tokens.",
        ),
        (
            "engine_gap",
            recent("rollout/logprob_gap") > WIDE_GAP,
            f"the log-probabilities of the engine differ by {recent('rollout/logprob_gap'):.2f} "
            "nats a token from the trainer's: the engine that draws the responses has other "
            "weights, another precision or other sampling settings. Restart its server; if only "
            "its precision differs, set ppo.importance_cap to 2.",
        ),
        (
            "equal_rewards",
            recent("objective/scores_std") == 0.0,
            "every reply has the same reward, so that there is nothing to learn from: look at "
            "the reward function, or train the reward model for longer.",
        ),
    )
    return [(name, sentence) for name, applies, sentence in rules if applies]


def diagnose_frontier(points: Sequence[Mapping[str, float]]) -> str | None:
    """A sentence where the reward rose while the judge's score fell; None if not.

    That is over-optimisation (Gao et al. 2023, section 3): the judge ends below where it began, or
    falls at each of the last two steps.

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
