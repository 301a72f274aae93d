"""The mixture of a corpus: how often each source is read, by the recipe's weights or epochs."""

from __future__ import annotations

from collections.abc import Mapping

from lmsmith.core.errors import UserError
from lmsmith.corpus.build.mixture import Part, Share, mixture_table, without_tokens
from lmsmith.corpus.build.recipe import CorpusRecipe

MOST_BYTES_OF_A_TOKEN = 16
"""More than the mean of any tokenizer's: text has at least so many tokens."""


def check_mixture(recipe: CorpusRecipe, sizes: Mapping[str, int]) -> None:
    """Refuse, before anything is tokenized, a mixture that no tokenizer makes possible.

    Args:
        sizes: source → bytes of the text that is left.

    Raises:
        UserError: a source with a weight has no text, or epochs take more than the budget.
    """
    sources = recipe.sources.items()
    if empty := [name for name, source in sources if source.weight and not sizes.get(name)]:
        raise without_tokens(empty)
    repeated = [name for name, source in sources if source.epochs]
    least = sum(
        (recipe.sources[name].epochs or 0) * sizes.get(name, 0) / MOST_BYTES_OF_A_TOKEN
        for name in repeated
    )
    if recipe.mix.tokens is not None and least > recipe.mix.tokens:
        problem = f"the epochs of {', '.join(repeated)} take more than {int(least):,} tokens"
        raise UserError(
            f"mix.tokens = {recipe.mix.tokens:,}: {problem}",
            "Raise the budget, or lower the epochs.",
        )


def mixture_of(recipe: CorpusRecipe, tokens: Mapping[str, int]) -> list[Part]:
    """The table for the tokens that are left of each source.

    Without weights, sources without ``epochs`` are read equally often: once, or as often as the
    budget allows.

    Raises:
        UserError: a source with a weight has no tokens, or epochs take more than the budget.
    """
    weighed = any(each.weight is not None for each in recipe.sources.values())
    shares = {}
    for name, source in recipe.sources.items():
        found, epochs = tokens.get(name, 0), source.epochs
        weight = source.weight if source.weight is not None else float(found)
        if not weighed and recipe.mix.tokens is None and epochs is None:
            epochs = 1.0
        shares[name] = Share(found, weight, epochs)
    return mixture_table(shares, recipe.mix.tokens)
