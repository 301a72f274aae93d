"""A classifier by words, trained on harmful and harmless texts of the user's own."""

from __future__ import annotations

from dataclasses import replace

from lmsmith.core.errors import UserError
from lmsmith.corpus.build.clean import clean
from lmsmith.corpus.build.document import Document
from lmsmith.corpus.build.quality_classifier import ClassifierConfig, Trained, train_classifier
from lmsmith.corpus.build.reading.plan import find_files, make_items
from lmsmith.corpus.build.reading.read import reader
from lmsmith.corpus.build.recipe import CorpusRecipe, SourceConfig


def train_on_examples(recipe: CorpusRecipe) -> Trained:
    """The classifier of ``harmful.examples`` and ``harmful.harmless``.

    The texts are read and cleaned as the corpus's own.

    Raises:
        UserError: a path names nothing, a file cannot be read, or there are too few texts.
    """
    config = recipe.harmful
    classes = {"examples": config.examples, "harmless": config.harmless}
    read = {name: _texts(recipe, f"harmful.{name}", paths) for name, paths in classes.items()}
    few = [f"harmful.{name} has {len(texts)}" for name, texts in read.items() if len(texts) < 10]
    if few:
        raise UserError(f"{' and '.join(few)} texts: too few to learn from", "Add texts, ten each.")
    return train_classifier(read["examples"], read["harmless"], ClassifierConfig(), recipe.seed)


def _texts(recipe: CorpusRecipe, name: str, paths: tuple[str, ...]) -> list[Document]:
    alone = replace(recipe, sources={name: SourceConfig(paths)})
    files, problems, _ = find_files(alone, {})
    items = make_items(alone, files, problems)
    documents = (each for each in reader(alone)(items, None) if isinstance(each, Document))
    if recipe.clean.enabled:
        cleaned = clean(documents, None, config=recipe.clean)
        documents = (each for each in cleaned if isinstance(each, Document))
    return list(documents)
