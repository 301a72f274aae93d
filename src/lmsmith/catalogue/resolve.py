"""Find the model of a word: a folder, a run, a Hugging Face folder, a GGUF file or a name."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from lmsmith.catalogue import registry, versions
from lmsmith.catalogue.registry import KNOWN_MODELS
from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint, is_there, missing, read_json, require_file, sha256_file
from lmsmith.runs.folders import working_folder
from lmsmith.runs.identity import remade_inputs
from lmsmith.runs.integrity import finished_record

log = logging.getLogger("lmsmith.models")
"""Says which model a run's folder stands for; the command line shows it."""

ADAPTER_FILE = "adapter.safetensors"
"""As in `lmsmith.models.folder`, which imports torch."""

WRITING_STAGES = ("ppo", "distil", "sft", "pretrain", "base", "emulator")
"""The stages that make a model which writes, the most aligned first."""

TRANSLATING_STAGE = "translate"
"""The stage that makes a translator; a run without a model that writes stands for it."""

ENCODING_STAGE = "masked_lm"
"""The stage that makes an encoder; commands that need one take it before a model that writes."""

OFFSITE_ADAPTERS = "offsite/adapters"
"""Where a run keeps the adapters that were tuned on an emulator."""

PEFT_FILE = "adapter_config.json"
"""Settings file of PEFT's adapters, which stand on another model."""

Format = Literal["lmsmith", "hf", "gguf", "peft"]


@dataclass(frozen=True)
class Source:
    """A model that was found: a folder or a .gguf file.

    ``name`` is the registered name, the version's (``NAME`` or ``NAME@N``), or the path as it was
    given.
    """

    format: Format
    path: Path
    name: str


def resolve(word: str | Path) -> Source:
    """The model that a path, a name with versions or a registered name means.

    A path that exists goes before a name, and a name with versions before a registered model.
    ``NAME`` means its promoted version, ``NAME@N`` that version. A run's folder stands for its
    last stage that is done: PPO, else SFT, else pretraining; which one it is goes to the log
    `lmsmith.models`.

    Raises:
        UserError: there is none; says what is there, the nearest name, and what can be pulled.
            Or the name has versions, but not this one.
    """
    path, name = Path(word), str(word)
    if name.startswith("openai:"):
        raise UserError(
            f"{name}: a model behind another server, whose weights are not here",
            "this needs a model of this machine; serve, eval, compare, feedback sample and "
            "feedback rank take one",
        )
    if is_there(path):
        return _of_path(path, name)
    if (version := versions.find(name)) is not None:
        return Source("lmsmith", version.path, name)
    record = registry.find(name.replace("/", "--")) if not path.is_absolute() else None
    if record is not None:
        found = _of_path(record.path, record.name)
        return Source(found.format, found.path, record.name)
    if name in KNOWN_MODELS:
        raise UserError(f"{name} is not on this machine yet", f"fetch it: lmsmith pull {name}")
    if name.startswith("hf:"):
        raise UserError(
            f"{name} is not on this machine yet",
            f"fetch it (lmsmith pull {name}), then call it by its name without hf:",
        )
    what = "no such folder" if len(path.parts) > 1 else "no such folder, and no model of that name"
    raise UserError(missing(name, what), _instead(path, name))


def _of_path(path: Path, name: str) -> Source:
    require_file(path)
    if path.is_file():
        if path.suffix == ".gguf":
            return Source("gguf", path, name)
        problem = f"{path} is a file; a model is a folder, or a file that ends in .gguf"
        raise UserError(problem, "name the folder it is in")
    for candidate in chain((path, path / "model"), _models_of_run(path)):
        config = candidate / "config.json"
        if (candidate / PEFT_FILE).is_file():
            return Source("peft", candidate, name)
        if config.is_file():
            content = read_json(config)
            ours = isinstance(content, dict) and "kind" in content
            theirs = isinstance(content, dict) and not ours and "model_type" in content
            return Source("hf" if theirs else "lmsmith", candidate, name)
    ggufs = sorted(path.glob("*.gguf"))
    if len(ggufs) == 1:
        return Source("gguf", ggufs[0], name)
    raise _nothing_in(path)


def _models_of_run(run: Path) -> Iterator[Path]:
    """The models of a run, the most aligned first; the log names each, and what is wrong with it.

    Adapters are passed over whose base was made again since: the two were never one model.
    """
    without = []
    for stage in (*WRITING_STAGES, TRANSLATING_STAGE, ENCODING_STAGE):
        model = run / stage / "model"
        if not (model / "config.json").is_file():
            without += [stage] if _in_recipe(run, stage) else []
            continue
        again = "run its recipe again"
        if (remade := _remade(run, stage)) and (model / ADAPTER_FILE).is_file():
            log.warning(
                f"{run}: the adapters of {stage} are not used: {', '.join(remade)} was made again "
                f"since ({again})"
            )
            continue
        notes = [f"{name} is not done" for name in without]
        line = _made_from(run, stage)
        older = {name for each in line for name in _remade(run, each)}
        if older:
            notes.append(f"made before the present {' and '.join(sorted(older))}; {again}")
        for each in line:
            working = working_folder(run / each)
            if working != run / each and working.exists():
                notes.append(f"a new {'one' if each == stage else each} is not done")
        log.info(f"{run}: the model of {stage}" + f" ({', '.join(notes)})" * bool(notes))
        yield model


def _remade(run: Path, stage: str) -> list[str]:
    """The inputs of a stage that were made again since it read them."""
    return remade_inputs(_record_of(run, stage), run)


def _record_of(run: Path, stage: str) -> dict[str, Any]:
    """A stage's record; a damaged one is logged, for its stage's own files are not used with it."""
    try:
        return finished_record(run / stage) or {}
    except UserError as error:
        log.warning(f"{error.problem}; {error.fix}")
        return {}


def _made_from(run: Path, stage: str) -> list[str]:
    """A stage, and those that it is made from, directly or through others."""
    found = [stage]
    for each in found:
        record = _record_of(run, each)
        inputs = (str(entry["stage"]) for entry in (record.get("inputs") or {}).values())
        found += [name for name in dict.fromkeys(inputs) if name not in found]
    return found


def _in_recipe(run: Path, stage: str) -> bool:
    try:
        content = read_json(run / "recipe.json")
    except UserError as error:
        if (run / "recipe.json").exists():
            log.warning(f"{error.problem}; {error.fix}")
        return False
    recipe = content.get("recipe") if isinstance(content, dict) else None
    return isinstance(recipe, dict) and stage in recipe


def _nothing_in(path: Path) -> UserError:
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    found = "it is empty" if not names else "it holds " + ", ".join(names[:12])
    if len(names) > 12:
        found += f" and {len(names) - 12} more"
    if (path / OFFSITE_ADAPTERS).is_dir():
        return UserError(
            f"{path} has tuned adapters, and no model",
            f"put them into their full model: lmsmith offsite plug MODEL {path}",
        )
    if (path / "recipe.json").is_file():
        return UserError(
            f"{path} is a run without a model yet ({found})",
            "run `lmsmith run` with its recipe until pretrain, sft or ppo is done",
        )
    return UserError(
        f"{path} is neither a model folder nor a run ({found})",
        "name a run such as runs/quickstart, a folder that a stage wrote, such as "
        "runs/quickstart/ppo/model, a Hugging Face folder or a GGUF file",
    )


def _instead(path: Path, name: str) -> str:
    """Advice for a path that does not exist."""
    if not path.is_absolute() and (Path("runs") / path).is_dir():
        return f"did you mean {Path('runs') / path}?"
    registered = [*versions.names(), *(record.name for record in registry.records())]
    runs = sorted(str(folder.parent) for folder in Path("runs").glob("*/recipe.json"))
    near = difflib.get_close_matches(name, [*registered, *KNOWN_MODELS, *runs], n=1, cutoff=0.6)
    if near and near[0] in KNOWN_MODELS and near[0] not in registered:
        return f"did you mean {near[0]}? Fetch it: lmsmith pull {near[0]}"
    if near:
        return f"did you mean {near[0]}?"
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    names = [f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")]
    if folder != Path() and names:
        return f"{folder} holds {', '.join(sorted(names)[:12])}"
    known = {"the models here": registered[:12], "the runs here": runs[:12]}
    lines = [f"{what}: {', '.join(found)}" for what, found in known.items() if found]
    lines.append(
        f"`lmsmith pull NAME` fetches {', '.join(KNOWN_MODELS)}; `lmsmith run quickstart` makes one"
    )
    return "; ".join(lines)


GENERATION_FILE, CARD_FILE = "generation_config.json", "card.json"
SAMPLING = "sampling"
"""Key of a card: the makers' advice on sampling, which every model made from theirs keeps."""


@dataclass(frozen=True)
class Sampling:
    """Used where a temperature or a top-p is not given."""

    temperature: float = 0.8
    top_p: float = 0.95


def advised_sampling(source: Source, base: Source | None = None) -> Sampling:
    """The makers' advice: of a fetched model, in a Hugging Face folder, or in the card of a model
    that was made from one; else that for ``base``, and else our own."""
    return Sampling(**(_advice(source) or ({} if base is None else _advice(base))))


def card_of_sampling(source: Source) -> dict[str, dict[str, float]]:
    """The part of a card that says how a model is to be sampled; empty without advice."""
    advice = _advice(source)
    return {SAMPLING: advice} if advice else {}


def _advice(source: Source) -> dict[str, float]:
    """Temperature and top-p, as far as the makers advise them."""
    record = registry.find(source.name)
    if source.name in KNOWN_MODELS and record is not None and record.path == source.path:
        shelved = KNOWN_MODELS[source.name]
        return {"temperature": shelved.temperature, "top_p": shelved.top_p}
    if source.format == "gguf":
        return {}
    path = source.path / (GENERATION_FILE if source.format in ("hf", "peft") else CARD_FILE)
    content: Any = read_json(path) if path.is_file() else {}
    if source.format == "lmsmith" and isinstance(content, dict):
        content = content.get(SAMPLING)
    advice = content if isinstance(content, dict) else {}
    return {
        name: float(value)
        for name, most in (("temperature", 2.0), ("top_p", 1.0))
        if isinstance(value := advice.get(name), int | float) and 0 < value <= most
    }


def weights_sum(source: Source) -> str:
    """The SHA-256 of a model's weights, tokenizer and chat template, file by file."""
    if source.path.is_file():
        return sha256_file(source.path)
    kinds = (".safetensors", ".json", ".gguf", ".model", ".bpe", ".txt", ".jinja")
    files = [
        file
        for file in sorted(source.path.iterdir())
        if file.is_file() and file.suffix in kinds and file.name != "card.json"
    ]
    return fingerprint([[file.name, sha256_file(file)] for file in files])
