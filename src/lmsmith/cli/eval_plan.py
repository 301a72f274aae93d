"""What the words of ``lmsmith eval`` mean: models, numbers of shots, and where files go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lmsmith.core.errors import UserError


def check_seed(seed: int) -> None:
    """Refuse a number that no generator takes."""
    if seed < 0:
        raise UserError(f"--seed {seed}: must be 0 or more", "e.g. --seed 1")


def models_to_measure(
    model: str, compare: Sequence[str], stages: bool
) -> tuple[list[str], list[tuple[int, int]]]:
    """The models in order, the page's own last, and which pairs are compared: (before, after).

    Stages are compared each with the one before it; others each with the model.

    Raises:
        UserError: one is named twice, or the run has no two stages that write.
    """
    from lmsmith.evaluation.run import folder_name

    if stages and compare:
        raise UserError("--stages and --compare: not both", "name the stages by --compare instead")
    words = stages_of(model) if stages else [*compare, model]
    names = [folder_name(word) for word in words]
    twice = next((word for word in words if names.count(folder_name(word)) > 1), None)
    if twice is not None:
        raise UserError(f"--compare {twice}: the same model twice", "name another")
    last = len(words) - 1
    return words, [(n, n + 1 if stages else last) for n in range(last)]


def stages_of(run: str) -> list[str]:
    """The folders of a run's stages that made a model which writes, the first one first.

    Raises:
        UserError: there are not two of them.
    """
    from lmsmith.catalogue.resolve import WRITING_STAGES

    found = [
        str(Path(run) / stage)
        for stage in reversed(WRITING_STAGES)
        if (Path(run) / stage / "model" / "config.json").is_file()
    ]
    if len(found) < 2:
        problem = f"{run}: no run with two stages that write"
        raise UserError(problem, "name a run's folder, such as runs/quickstart --stages")
    return found


def places_of(words: Sequence[str], folder: Path | None) -> list[Path]:
    """Where each model's results go: evals/MODEL, or the folder for the last one."""
    from lmsmith.evaluation.run import folder_name

    if folder is None:
        return [Path("evals") / folder_name(word) for word in words]
    beside = [folder.with_name(f"{folder.name}-{folder_name(word)}") for word in words[:-1]]
    return [*beside, folder]


def split_words(text: str) -> list[str]:
    """What stands between commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def shot_counts(text: str) -> list[int | None]:
    """The numbers of ``--shots``; None for ``fit``."""
    counts: list[int | None] = []
    for word in split_words(text):
        if word != "fit" and not word.isdecimal():
            raise UserError(f"--shots {word}: neither a number nor fit", "e.g. --shots 0,1,4")
        counts.append(None if word == "fit" else int(word))
    return counts
