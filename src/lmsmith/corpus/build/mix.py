"""The mixture of a corpus: how often each source is read, by the recipe's weights or epochs."""

from __future__ import annotations

from collections.abc import Mapping

from lmsmith.corpus.build.mixture import Part, Share, mixture_table
from lmsmith.corpus.build.recipe import CorpusRecipe


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
