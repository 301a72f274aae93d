"""The steps in their order: from the documents that were read to those that are kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lmsmith.corpus.build.decontaminate import TaskGrams, remove_tasks
from lmsmith.corpus.build.duplicate_ids import find_duplicate_ids
from lmsmith.corpus.build.engine import Data, Engine
from lmsmith.corpus.build.exact import remove_exact
from lmsmith.corpus.build.harmful import Scorer
from lmsmith.corpus.build.harmful_examples import train_on_examples
from lmsmith.corpus.build.lines import remove_lines
from lmsmith.corpus.build.near_duplicates import find_near_duplicates, remove_near_duplicates
from lmsmith.corpus.build.near_sample import measure_near_duplicates
from lmsmith.corpus.build.prepare import prepared
from lmsmith.corpus.build.quality import apply_classifier, apply_rules
from lmsmith.corpus.build.recipe import CorpusRecipe

LAST = "kept"
"""Name of the checkpoint after all steps."""


@dataclass
class Steps:
    """What the steps leave behind.

    Attributes:
        kept: a checkpoint of the documents after the last step.
        checkpoints: all of them, in order.
        figures: of the classifiers, of near-duplicates and of the tasks, for the corpus's record.
    """

    engine: Engine
    kept: Data
    checkpoints: list[Data] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    def keep(self, data: Data, name: str) -> None:
        """Run the maps that wait, if any do, and keep the documents under a name."""
        if data is not self.kept or name == LAST:
            self.kept = self.engine.checkpoint(data, name)
            self.checkpoints.append(self.kept)


def run_steps(
    engine: Engine,
    data: Data,
    recipe: CorpusRecipe,
    tasks: TaskGrams | None,
    harm: Scorer | None = None,
) -> Steps:
    """All steps between reading and the shards.

    Args:
        data: a checkpoint of what was read.
        tasks: what the tasks of ``recipe.decontaminate`` ask; None without any.
        harm: the classifier of ``recipe.harmful.classifier``; None without one.
    """
    steps, curated, seed = Steps(engine, data), recipe.curated, recipe.seed
    quality, deduplicate = recipe.quality, recipe.deduplicate
    steps.figures["duplicate_ids"] = find_duplicate_ids(engine, data)
    if recipe.harmful.examples:
        learnt = train_on_examples(recipe)
        harm = learnt.classifier
        steps.figures["harmful_classifier"] = learnt.figures
    if (ready := prepared(engine, data, recipe, harm)) is not data:
        steps.keep(ready, "prepared")
    data = apply_rules(engine, steps.kept, quality, curated)
    if quality.classifier.enabled:
        steps.keep(data, "after-rules")
        classifier = quality.classifier
        data, trained = apply_classifier(engine, steps.kept, classifier, curated, seed)
        steps.figures["quality_classifier"] = trained.figures
    if deduplicate.exact:
        steps.keep(data, "after-quality")
        data = remove_exact(engine, steps.kept, curated)
    if deduplicate.lines.enabled:
        steps.keep(data, "after-exact")
        data = remove_lines(engine, steps.kept, deduplicate.lines, curated)
    if deduplicate.near.enabled:
        steps.keep(data, "after-lines")
        near = deduplicate.near
        found = find_near_duplicates(engine, steps.kept, near, curated, seed)
        steps.figures["near_duplicates"] = measure_near_duplicates(
            engine, steps.kept, near, found, deduplicate.sample, seed
        )
        data = remove_near_duplicates(engine, steps.kept, found)
    if tasks is not None:
        steps.keep(data, "after-duplicates")
        data = remove_tasks(engine, steps.kept, tasks, recipe.decontaminate)
        steps.figures["decontaminate"] = {
            "items": len(tasks.items),
            "runs_of_words": len(tasks.hashes_g),
            "items_too_short_to_find": tasks.short,
        }
    steps.keep(data, LAST)
    return steps
