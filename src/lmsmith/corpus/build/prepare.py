"""The steps on single documents, in their order: clean, language, personal data, harmful text."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lmsmith.core.errors import UserError
from lmsmith.core.files import beside, read_text
from lmsmith.corpus.build.clean import clean
from lmsmith.corpus.build.engine import Data, Engine
from lmsmith.corpus.build.harmful import Scorer, read_words, remove_by_score, remove_harmful
from lmsmith.corpus.build.language import identify
from lmsmith.corpus.build.personal import mask
from lmsmith.corpus.build.recipe import CorpusRecipe


def prepared(engine: Engine, data: Data, recipe: CorpusRecipe, harm: Scorer | None) -> Data:
    """The documents after these steps; none of them has run yet.

    Args:
        harm: scores the harm of texts; None leaves that step out.

    Raises:
        UserError: the file of harmful words holds none.
    """
    if recipe.clean.enabled:
        data = engine.map(data, "clean", partial(clean, config=recipe.clean))
    if recipe.language.enabled:
        data = engine.map(data, "language", partial(identify, config=recipe.language))
    if recipe.personal.mask:
        data = engine.map(data, "personal", partial(mask, config=recipe.personal))
    if recipe.harmful.words:
        words = read_words(read_text(Path(beside(recipe.folder, recipe.harmful.words))))
        if not words:
            problem = f"harmful.words = {recipe.harmful.words}: the file has no word"
            raise UserError(problem, "Write a word or phrase a line.")
        remove = partial(remove_harmful, most=recipe.harmful.max_found)
        data = engine.map(data, "harmful", remove, words)
    if harm is not None:
        by_score = partial(remove_by_score, threshold=recipe.harmful.threshold)
        data = engine.map(data, "harmful-score", by_score, harm)
    return data
