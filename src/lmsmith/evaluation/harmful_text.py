"""A fine-tuned classifier as the corpus builder's judge of harmful text, in any process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, sha256_file
from lmsmith.corpus.build.reading.text import pieces

if TYPE_CHECKING:
    from lmsmith.evaluation.classifier_function import ClassifierFunction

CHARACTERS_OF_A_TOKEN = 3
"""A piece has so many characters for each token that the classifier reads."""


@dataclass(frozen=True)
class FineTunedScorer:
    """The probability of a label; the classifier is read by each worker, once.

    Attributes:
        path: the classifier's folder; engines bring its files to other machines.
        key: fingerprint of the files and the label.
    """

    path: Path
    key: str
    label: str

    def scores(self, texts: Sequence[str]) -> list[float]:
        """The largest probability of each text's pieces; each text is computed by itself, so that
        no other changes a bit of it."""
        return [self._score(text) for text in texts]

    def _score(self, text: str) -> float:
        function = _function(self.path)
        most = CHARACTERS_OF_A_TOKEN * function.context
        rows = function([each for each in pieces(iter((text,)), most) if each.strip()])
        return max((float(row["probabilities"][self.label]) for row in rows), default=0.0)


def fine_tuned_scorer(word: str, label: str = "") -> FineTunedScorer:
    """The scorer of a run, folder or registered name.

    Raises:
        UserError: it is no classifier of single texts, or has no such label.
    """
    from lmsmith.catalogue.classifiers import read_classifier

    read = read_classifier(word)
    config = read.model.config
    if config.form != "classification" or len(config.texts) != 1 or not config.labels:
        fix = "name a classifier that gives one text a label, such as one of the task sst2"
        raise UserError(f"harmful.classifier: {word} does not give one text a label", fix)
    chosen = label or config.labels[-1]
    if chosen not in config.labels:
        fix = f"Its labels: {', '.join(config.labels)}."
        raise UserError(f"harmful.label = {label}: {word} has no such label", fix)
    files = sorted(path for path in read.path.iterdir() if path.is_file())
    key = fingerprint([chosen, [[path.name, sha256_file(path)] for path in files]])
    return FineTunedScorer(read.path.absolute(), key, chosen)


@lru_cache(maxsize=1)
def _function(path: Path) -> ClassifierFunction:
    from lmsmith.catalogue.classifiers import read_classifier
    from lmsmith.core.recipe import MachineConfig
    from lmsmith.evaluation.classifier_function import ClassifierFunction
    from lmsmith.training.machine import prepare_process

    machine = prepare_process(MachineConfig(threads=1, precision="fp32"))
    return ClassifierFunction(read_classifier(path), machine)
