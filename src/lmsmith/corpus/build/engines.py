"""The engine that a recipe names."""

from __future__ import annotations

from pathlib import Path

from lmsmith.core.progress import Progress
from lmsmith.corpus.build.engine import Engine
from lmsmith.corpus.build.local import LocalEngine
from lmsmith.corpus.build.recipe import CorpusRecipe
from lmsmith.runs.stage_folder import available_cores


def make_engine(recipe: CorpusRecipe, folder: Path, input_bytes: int, progress: Progress) -> Engine:
    """The engine of a recipe, ready to work.

    Args:
        folder: of its results.
        input_bytes: about those of the text of all files.

    Raises:
        UserError: Spark is not installed, or does not start.
    """
    workers = recipe.workers or available_cores()
    if recipe.engine == "local":
        return LocalEngine(folder, workers, progress)
    from lmsmith.corpus.build.spark import SparkEngine

    return SparkEngine(folder, recipe.spark, workers, input_bytes, progress)
