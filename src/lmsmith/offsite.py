"""Python functions of ``lmsmith offsite emulator``, ``tune`` and ``plug``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmsmith.api import Recorded, RunResult, run_loaded, stage_recipe
from lmsmith.core.errors import UserError
from lmsmith.core.files import missing
from lmsmith.options import documented

if TYPE_CHECKING:
    from lmsmith.core.recipe import Recipe

PLUG_STAGE = "offsite plug"
"""``stage`` in the card of a model that `offsite_plug` made."""

_NEW_FOLDER = "name a new folder"


@documented
def offsite_emulator(
    model: str,
    *,
    adapter_layers: int = 2,
    keep: int = 8,
    distil: Sequence[str] = (),
    out: Path = Path("runs/emulator"),
    set: Sequence[str] = (),
    quiet: bool = False,
) -> RunResult:
    """Make an emulator of a model, on which others tune its first and last layers.

    The emulator has the adapters, which are the first and the last layers, and some of the layers
    between them; nothing of those left out is in its folder (Xiao et al. 2023). Send OUT/emulator/
    model to the owner of the data. Run it again after anything (Ctrl-C, kill): what was cut off
    continues.

    Args:
        adapter_layers: Layers of each adapter.
        keep: Layers of those between the adapters that are kept, evenly spaced.
        distil: Text (.txt, .jsonl, a folder) on which the kept layers learn to stand for all; may
            be given more than once.
        out: The run's folder.
        set: Change a setting of the stage, e.g. tokens=200000; or of the recipe, e.g. seed=3,
            machine.threads=1.
        quiet: Show no progress, only warnings.

    Returns:
        The run; the emulator is in ``folder / "emulator" / "model"``.

    Raises:
        UserError: no such model or text, or the model has too few layers.
        Interrupted: after Ctrl-C, once everything is saved.

    >>> lmsmith.offsite_emulator("smollm2-135m", distil=["texts.jsonl"])    # doctest: +SKIP
    """
    recipe = emulator_recipe(model, adapter_layers, keep, distil, set)
    return run_loaded(recipe, out, f"emulator of {model}", quiet=quiet)


def emulator_recipe(
    model: str, adapter_layers: int, keep: int, distil: Sequence[str], settings: Sequence[str]
) -> Recipe:
    """The recipe of `lmsmith offsite emulator`."""
    given: dict[str, Any] = {"model": model, "adapter_layers": adapter_layers}
    given |= {"keep_layers": keep, "texts": list(distil)}
    return stage_recipe("emulator", "emulator", given, settings)


@documented
def offsite_tune(
    emulator: str,
    task: str,
    *,
    data: Path | None = None,
    out: Path | None = None,
    set: Sequence[str] = (),
    quiet: bool = False,
) -> RunResult:
    """Tune the adapters of an emulator on your data; they are all that is kept.

    Send OUT/offsite/adapters to the owner of the model: no text of yours is in it. Run it again
    after anything (Ctrl-C, kill): what was cut off continues.

    Args:
        emulator: The folder that lmsmith offsite emulator made, or the model folder in it.
        task: A task (arc_easy, boolq, cb, cola, copa, mrpc, openbook_qa, rte, sst2, stsb,
            winograd), a .toml file of a task of your own, or conversations (.jsonl).
        data: Where the task's files are; also LMSMITH_DATA.
        out: The run's folder; runs/offsite-TASK by default.
        set: Change a setting of the stage, e.g. sft.epochs=5, examples=200; or of the recipe, e.g.
            seed=3, machine.threads=1.
        quiet: Show no progress, only warnings.

    Returns:
        The run; the adapters are in ``folder / "offsite" / "adapters"``.

    Raises:
        UserError: no such emulator or task, or data that cannot be learnt from.
        Interrupted: after Ctrl-C, once everything is saved.

    >>> lmsmith.offsite_tune("runs/emulator", "sst2", data="data")          # doctest: +SKIP
    """
    given: dict[str, Any] = {"model": emulator, "task": task}
    name = f"offsite-{Path(task).stem}"
    recipe = stage_recipe(name, "offsite", {**given, "data": str(data) if data else ""}, set)
    return run_loaded(recipe, out or Path("runs") / name, f"{name}: {emulator}", quiet=quiet)


@dataclass(frozen=True, kw_only=True)
class PluggedModel(Recorded):
    """A full model with adapters that were tuned on its emulator: its folder."""

    folder: Path


@documented
def offsite_plug(model: str, adapters: Path, *, out: Path = Path("runs/plugged")) -> PluggedModel:
    """Put tuned adapters into the full model that their emulator was made from.

    The result is a model folder as any other; all layers but the adapters' are as they were.

    Args:
        model: The full model.
        adapters: What lmsmith offsite tune made: its run, or the folder of the adapters.
        out: The new model's folder; one that this command made is replaced.

    Raises:
        UserError: there are no adapters, they are of another model, or the folder holds something
            else.

    >>> lmsmith.offsite_plug("smollm2-135m", "runs/offsite-sst2").folder    # doctest: +SKIP
    """
    from lmsmith.catalogue.reading import read_card, read_model
    from lmsmith.catalogue.resolve import card_of_sampling
    from lmsmith.models.folder import save_model
    from lmsmith.models.offsite import adapter_state, plug

    if not adapters.is_dir():
        raise UserError(missing(adapters, "no such folder"), "name what `offsite tune` wrote")
    read = read_model(model)
    if out.exists() and out.resolve() == read.source.path.resolve():
        raise UserError(f"--out {out}: is the model itself", _NEW_FOLDER)
    if out.exists() and read_card(out).get("stage") != PLUG_STAGE:
        raise UserError(f"--out {out}: is there, and `offsite plug` did not make it", _NEW_FOLDER)
    about = plug(read.decoder, adapters)
    trained = sum(
        each.numel() for each in adapter_state(read.decoder, about.adapter_layers).values()
    )
    card: dict[str, Any] = {"stage": PLUG_STAGE, "parents": [read.source.name]}
    card |= {"adapters": str(adapters), **card_of_sampling(read.source)}
    save_model(out, read.decoder, read.tokenizer, card)
    record = {
        "model": read.source.name,
        "adapters": str(adapters),
        "folder": str(out),
        "layers": about.layers,
        "adapter_layers": about.adapter_layers,
        "adapter_parameters": trained,
        "parameters": read.decoder.config.parameters,
    }
    return PluggedModel(folder=out, record=record)
