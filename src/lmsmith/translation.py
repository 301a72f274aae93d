"""Python functions of ``lmsmith translate``: texts in another language, by an encoder–decoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lmsmith.catalogue.translators import read_translator
from lmsmith.core.config import SettingsError
from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.translation import PAPER_BEAMS, Attended, Translation, Translator
from lmsmith.options import Precision, documented
from lmsmith.training.machine import resolve_machine


def load_translator(model: str, *, precision: Precision = "auto", threads: int = 0) -> Translator:
    """Read a translator: a run of ``lmsmith run translate``, a model folder or a Marian folder.

    >>> lmsmith.load_translator("runs/translate")(["A dog runs."])[0].text  # doctest: +SKIP
    """
    read = read_translator(model)
    machine = resolve_machine(MachineConfig(precision=precision, threads=threads))
    return Translator(read.model, read.tokenizer, machine)


@dataclass(frozen=True)
class Translations:
    """Translated texts, with the attention between both if it was asked for."""

    model: str
    beam: int
    length_penalty: float
    translations: list[Translation]
    attention: list[Attended]

    def as_dict(self) -> dict[str, Any]:
        rows: list[dict[str, Any]] = [
            {"input": each.source, "output": each.text, "score": round(each.score, 6)}
            for each in self.translations
        ]
        for row, attended in zip(rows, self.attention, strict=bool(self.attention)):
            row["attention"] = vars(attended)
        about = {"beam": self.beam, "length_penalty": self.length_penalty}
        return {"model": self.model, **about, "translations": rows}


@documented
def translate(
    model: str,
    texts: Sequence[str],
    *,
    beam: int = 4,
    length_penalty: float = 0.6,
    attention: bool = False,
    precision: Precision = "auto",
    threads: int = 0,
) -> Translations:
    """Translate sentences by beam search.

    Args:
        model: A run of lmsmith run translate, a model folder, or a Marian folder.
        texts: A sentence each, as the model learnt them.
        beam: Beams that are kept; 1 takes the likeliest token every time.
        length_penalty: Above 0 longer translations are preferred.
        attention: Give the attention between the two sentences too.

    Raises:
        UserError: there is no such model, or a text is longer than it reads.

    >>> lmsmith.translate("runs/translate", ["A dog runs."])                # doctest: +SKIP
    """
    settings = replace(PAPER_BEAMS, width=beam, length_penalty=length_penalty)
    if problems := settings.check():
        raise SettingsError(problems)
    translator = load_translator(model, precision=precision, threads=threads)
    found = translator(texts, settings)
    drawn = [translator.attention(each) for each in found if attention]
    return Translations(model, beam, length_penalty, found, drawn)
