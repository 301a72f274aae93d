"""The steps in their order: from the documents that were read to those that are kept."""

from __future__ import annotations

from lmsmith.corpus.build.engine import Data, Engine
from lmsmith.corpus.build.exact import remove_exact
from lmsmith.corpus.build.recipe import CorpusRecipe


def kept_documents(engine: Engine, data: Data, recipe: CorpusRecipe) -> Data:
    """All steps between reading and the shards; the result is a checkpoint."""
    if recipe.deduplicate.exact:
        data = remove_exact(engine, data, recipe.curated)
    return engine.checkpoint(data, "kept")
