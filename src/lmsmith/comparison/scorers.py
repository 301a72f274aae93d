"""How often a model that scores orders pairs as people did, and what beats it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from lmsmith.comparison.win_rate import wins
from lmsmith.statistics.bootstrap import bootstrap_ratio

LIKELIER = ("likelier_total", "likelier_per_token")
"""The two readings of "the likelier under SFT wins"; the stronger is the one to beat."""


def accuracy_beside_rules(
    correct_b: Tensor, pairs_b: Tensor, rules: Mapping[str, Tensor], seed: int
) -> dict[str, float]:
    """Accuracies of rules that know nothing of the conversation, and the margin above the best.

    Args:
        correct_b: pairs of each prompt that the scorer orders rightly, ties counting ½.
        pairs_b: pairs of each prompt.
        rules: the same as ``correct_b`` for each rule; those of `LIKELIER` must be among them.
        seed: of the margin's bootstrap over prompts.
    """
    found = {
        f"{rule}_wins_accuracy": float(right_b.sum() / pairs_b.sum())
        for rule, right_b in rules.items()
    }
    right = {rule: float(right_b.sum()) for rule, right_b in rules.items()}
    stronger = max(LIKELIER, key=right.__getitem__)
    found["likelier_wins_accuracy"] = found[f"{stronger}_wins_accuracy"]
    strongest = max(right, key=right.__getitem__)
    margin = bootstrap_ratio(correct_b - rules[strongest], pairs_b, seed=seed)
    return found | margin.named("accuracy_above_rules")


def accuracy_by_origin(
    scores: Sequence[Sequence[float]], ranks: Sequence[Sequence[int]], origins: Sequence[object]
) -> dict[str, float]:
    """Accuracy against each kind of other candidate, where a row says what its candidates are.

    Args:
        scores, ranks: of each row's candidates; rank 1 is best.
        origins: the kind of each of the row's candidates; a row of anything else is left out.
    """
    right: dict[str, list[float]] = {}
    for row_scores, row_ranks, kinds in zip(scores, ranks, origins, strict=True):
        if not isinstance(kinds, list) or len(kinds) != len(row_scores):
            continue
        first = min(row_ranks)
        for best in [place for place, rank in enumerate(row_ranks) if rank == first]:
            for place, kind in enumerate(kinds):
                if row_ranks[place] > first:
                    won = wins([row_scores[best]], [row_scores[place]])[0]
                    right.setdefault(str(kind), []).append(float(won))
    return {f"accuracy_against_{kind}": sum(each) / len(each) for kind, each in right.items()}
