"""The table of a mixture: tokens, weight and epochs of each source for a budget of tokens.

Epochs = weight · budget / tokens of the source (Brown et al. 2020, table 2.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lmsmith.core.errors import UserError

MANY_EPOCHS = 4
"""Repeating data up to so often is nearly as good as new data (Muennighoff et al. 2023)."""


@dataclass(frozen=True)
class Share:
    """What a recipe asks of a source: a weight, or a number of epochs."""

    tokens: int
    weight: float = 1.0
    epochs: float | None = None


@dataclass(frozen=True)
class Part:
    """A row of the table.

    Attributes:
        tokens: of the source.
        weight: share of the budget, from 0 to 1.
        epochs: how often the budget reads the source.
        drawn: tokens of the budget that are the source's.
    """

    source: str
    tokens: int
    weight: float
    epochs: float
    drawn: int


def mixture_table(shares: Mapping[str, Share], budget: int | None = None) -> list[Part]:
    """A row for each source, in their order; the tokens drawn add up to the budget.

    A source with ``epochs`` takes as many tokens as they have, whatever the budget. The others
    share the rest of the budget by weight. Without a budget it is large enough to read each
    source with a weight once, and no more.

    Raises:
        UserError: a source with a weight has no tokens; epochs take more than the budget.
    """
    fixed = {
        name: round(share.epochs * share.tokens)
        for name, share in shares.items()
        if share.epochs is not None
    }
    weights = {
        name: share.weight for name, share in shares.items() if name not in fixed and share.weight
    }
    empty = [name for name in weights if not shares[name].tokens]
    if empty:
        raise without_tokens(empty)
    total = sum(weights.values())
    if budget is None:
        once = (shares[name].tokens * total / weight for name, weight in weights.items())
        budget = sum(fixed.values()) + round(max(once, default=0))
    rest = budget - sum(fixed.values())
    if rest < 0 or (rest and not weights):
        raise UserError(
            f"the epochs of the sources take {sum(fixed.values()):,} tokens, and the budget has "
            f"{budget:,}",
            "change the budget or the epochs, or give a source a weight",
        )
    drawn = fixed | dict(zip(weights, _divided(rest, list(weights.values())), strict=True))
    return [_part(name, share.tokens, drawn.get(name, 0), budget) for name, share in shares.items()]


def without_tokens(names: Sequence[str]) -> UserError:
    """The error of sources that have a weight and no text."""
    return UserError(
        f"sources {', '.join(names)}: no tokens are left, so their weight cannot be drawn",
        "lower the limits of the steps that removed them, or set their weight to 0",
    )


def _part(name: str, tokens: int, drawn: int, budget: int) -> Part:
    epochs = drawn / tokens if tokens else 0.0
    return Part(name, tokens, drawn / budget if budget else 0.0, epochs, drawn)


def _divided(total: int, weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to weights that add up to the total (largest remainders)."""
    exact = [total * weight / sum(weights) for weight in weights]
    whole = [int(each) for each in exact]
    order = sorted(range(len(exact)), key=lambda n: (whole[n] - exact[n], n))
    for number in order[: total - sum(whole)]:
        whole[number] += 1
    return whole


def mixture_warnings(table: Sequence[Part]) -> Iterator[str]:
    """A sentence for each source that is left out, or repeated more often than helps."""
    for part in table:
        if part.tokens and not part.drawn:
            yield f"{part.source}: weight 0, so none of its {part.tokens:,} tokens is read"
        elif part.epochs > MANY_EPOCHS:
            yield (
                f"{part.source}: the budget reads it {part.epochs:.1f} times; more than "
                f"{MANY_EPOCHS} help little"
            )
