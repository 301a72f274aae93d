"""PEFT's LoRA folders: adapter_config.json and adapter_model.safetensors, read and written.

PEFT adapts each of transformers' matrices by (α/r) B A. Where our one matrix of queries, keys and
values is three of theirs, their adapters are blocks of one of ours of up to three times the rank:

    A = [A_q; A_k; A_v]   B = diag(B_q, B_k, B_v)

Back, each of theirs gets its rows of B, and all of A that these use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lmsmith.core.config import Problem, SettingsError
from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json, write_json
from lmsmith.models.adapters import PARTS, AdapterConfig
from lmsmith.models.config import ModelConfig
from lmsmith.models.folder import MOST_CONFIG_BYTES
from lmsmith.models.interop.families import Family
from lmsmith.models.interop.transformers import (
    family_of,
    parameter_shapes,
    query_key_value_rows,
    scale_query,
    their_names,
)
from lmsmith.models.weights_file import read_tensors, require_weight

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_PREFIX = "base_model.model."
_CHANGED_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
"""Beginnings of ``init_lora_weights`` under which the adapters belong to changed base weights."""

_UNSUPPORTED: Mapping[str, str] = {
    "use_dora": "DoRA also learns the length of each weight's columns",
    "modules_to_save": "whole modules were trained beside the adapters",
    "rank_pattern": "layers have ranks of their own",
    "alpha_pattern": "layers have scales of their own",
    "lora_bias": "the adapters have biases",
    "layer_replication": "layers are used more than once",
    "trainable_token_indices": "rows of the embedding were trained",
    "target_parameters": "parameters that are no linear layer were adapted",
    "use_qalora": "QA-LoRA groups the inputs",
    "use_bdlora": "BD-LoRA is of another form",
    "alora_invocation_tokens": "aLoRA adapts a part of the text alone",
    "arrow_config": "several adapters are mixed",
}
"""Setting of adapter_config.json → what it means."""

_MERGE = "merge it where it was made (model.merge_and_unload()), and read the merged folder"


@dataclass(frozen=True)
class PeftAdapter:
    """A LoRA folder as it is: (A, B) by the name of transformers' module, and α/r.

    ``base`` is the model that it names.
    """

    base: str
    scale: float
    pairs: Mapping[str, tuple[Tensor, Tensor]]


def read_peft_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a kind that our adapters have.

    Raises:
        UserError: it is missing or damaged, or of an unsupported kind; all reasons are named.
    """
    path = folder / CONFIG_FILE
    settings = read_json(path, MOST_CONFIG_BYTES)
    if not isinstance(settings, dict):
        raise UserError(f"{path}: expected an object", "get it again")
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise UserError(f"{path}: peft_type = {kind}: lmsmith reads LORA alone", _MERGE)
    problems = [
        Problem(name, settings[name], f"none: {meaning}", _MERGE)
        for name, meaning in _UNSUPPORTED.items()
        if settings.get(name)
    ]
    if settings.get("bias", "none") != "none":
        problems.append(Problem("bias", settings["bias"], "none: biases were trained too", _MERGE))
    started = settings.get("init_lora_weights")
    if isinstance(started, str) and started.lower().startswith(_CHANGED_BASE):
        expected = "true: this one changes the weights of the base"
        problems.append(Problem("init_lora_weights", started, expected, _MERGE))
    if settings.get("task_type") not in (None, "CAUSAL_LM"):
        expected = "CAUSAL_LM: the model writes text"
        problems.append(Problem("task_type", settings["task_type"], expected, _MERGE))
    for name, kinds, expected in (
        ("r", (int,), "1 or more"),
        ("lora_alpha", (int, float), "a number above 0"),
    ):
        value: Any = settings.get(name)
        if type(value) not in kinds or not value > 0 or not math.isfinite(value):
            problems.append(Problem(name, value, expected, "get it again"))
    if not isinstance(settings.get("base_model_name_or_path"), str):
        named = settings.get("base_model_name_or_path")
        problems.append(Problem("base_model_name_or_path", named, "a model", "write its folder"))
    if problems:
        raise SettingsError(problems, str(path))
    return settings


def read_peft_folder(folder: Path) -> PeftAdapter:
    """Read a LoRA folder.

    Raises:
        UserError: as `read_peft_config`; or the weights are missing, damaged, pickled or of another
            kind.
    """
    settings, path = read_peft_config(folder), folder / WEIGHTS_FILE
    if not path.is_file():
        pickled = (folder / _PICKLE).is_file()
        why = f"its weights are pickled ({_PICKLE})" if pickled else f"it has no {WEIGHTS_FILE}"
        raise UserError(f"{folder}: {why}", "save it with safe_serialization=True")
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in read_tensors(path).items():
        module, _, which = name.removeprefix(_PREFIX).rpartition(".lora_")
        if which not in ("A.weight", "B.weight"):
            raise UserError(f"{path}: {name} is no LoRA matrix of a linear layer", _MERGE)
        halves.setdefault(module, {})[which[0]] = tensor.float()
    rank, pairs = settings["r"], {}
    for module, both in halves.items():
        if set(both) != {"A", "B"}:
            raise UserError(f"{path}: {module} has one matrix of two", "get it again")
        if both["A"].shape[:1] != (rank,) or both["B"].shape[1:] != (rank,):
            raise UserError(f"{path}: {module} has not the rank {rank} of its config", _MERGE)
        pairs[module] = both["A"], both["B"]
    if not pairs:
        raise UserError(f"{path} holds no adapter", "get it again")
    root = math.sqrt(rank) if settings.get("use_rslora") else rank
    return PeftAdapter(settings["base_model_name_or_path"], settings["lora_alpha"] / root, pairs)


def from_peft(config: ModelConfig, adapter: PeftAdapter) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """Our adapters that compute the same on a base of this shape.

    Returns:
        Their settings, and what `TrainedState.load_state_dict` takes after `add_adapters`: ``down``
        and ``up`` of every layer of the adapted parts, zeros where PEFT adapts nothing.

    Raises:
        UserError: a module that our decoder has not, or matrices of another shape.
    """
    family, _ = family_of(config)
    left, blocks = dict(adapter.pairs), {}
    for name, shape in parameter_shapes(config).items():
        if not (name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2):
            continue
        theirs = [each.removesuffix(".weight") for each in their_names(family, name)]
        rows = query_key_value_rows(config) if len(theirs) > 1 else [shape[0]]
        found = [_taken(left, module, family) for module in theirs]
        blocks[name.removesuffix(".weight")] = shape, rows, found
        for module, pair, height in zip(theirs, found, rows, strict=True):
            if pair is not None:
                fix = "its base is another model"
                require_weight(f"{module}.lora_A", pair[0], (pair[0].shape[0], shape[1]), fix)
                require_weight(f"{module}.lora_B", pair[1], (height, pair[1].shape[1]), fix)
    if left:
        raise UserError(
            f"the adapter has modules that lmsmith does not adapt: {', '.join(sorted(left)[:3])}",
            _MERGE,
        )
    parts = tuple(
        part
        for part in PARTS
        if any(f".{part}." in f"{name}." and any(f) for name, (_, _, f) in blocks.items())
    )
    most = max(sum(p[0].shape[0] for p in f if p) for _, _, f in blocks.values())
    state = {}
    for name, (shape, rows, found) in blocks.items():
        if any(f".{part}." in name for part in parts):
            down, up = _one_block(shape, rows, found, most)
            state[f"{name}.down"] = down
            state[f"{name}.up"] = scale_query(
                up, f"{name}.weight", config, family, math.sqrt(config.width_per_head)
            )
    return AdapterConfig(most, adapter.scale * most, parts), state


def _taken(
    left: dict[str, tuple[Tensor, Tensor]], module: str, family: Family
) -> tuple[Tensor, Tensor] | None:
    """The pair of a module, with or without the prefix of the model with a head."""
    return left.pop(module, None) or left.pop(module.removeprefix(family.prefix), None)


def _one_block(
    shape: torch.Size, rows: list[int], found: list[tuple[Tensor, Tensor] | None], rank: int
) -> tuple[Tensor, Tensor]:
    """A and B of all parts of a matrix, below and beside each other; zeros fill up the rank."""
    down, up = torch.zeros(rank, shape[1]), torch.zeros(shape[0], rank)
    row = column = 0
    for height, pair in zip(rows, found, strict=True):
        if pair is not None:
            wide = column + pair[0].shape[0]
            down[column:wide] = pair[0]
            up[row : row + height, column:wide] = pair[1]
            column = wide
        row += height
    return down, up


def to_peft(
    config: ModelConfig, adapter: AdapterConfig, state: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Our adapters as PEFT's: adapter_config.json without its base, and the weights.

    Columns of B that are zero are left out, so that what came from PEFT has its rank again.

    Raises:
        UserError: no family of transformers has this shape.
    """
    family, _ = family_of(config)
    scale = 1.0 / math.sqrt(config.width_per_head)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for key, down in state.items():
        if not key.endswith(".down"):
            continue
        name = key.removesuffix(".down")
        up = scale_query(state[f"{name}.up"], f"{name}.weight", config, family, scale)
        modules = [each.removesuffix(".weight") for each in their_names(family, f"{name}.weight")]
        rows = query_key_value_rows(config) if len(modules) > 1 else [up.shape[0]]
        for module, part in zip(modules, torch.split(up, rows), strict=True):
            pairs[module] = down, part
    used = {module: (up != 0).any(dim=0) for module, (_, up) in pairs.items()}
    learnt = {module for module, columns in used.items() if bool(columns.any())}
    rank = max((int(used[module].sum()) for module in learnt), default=adapter.rank)
    weights = {}
    for module, (down, up) in pairs.items():
        if learnt and module not in learnt:
            continue
        # The used columns first, in their order, and as many others as the rank has room for.
        order = torch.argsort((~used[module]).to(torch.uint8), stable=True)[:rank]
        weights[f"{_PREFIX}{module}.lora_A.weight"] = down[order].contiguous()
        weights[f"{_PREFIX}{module}.lora_B.weight"] = up[:, order].contiguous()
    inside = (name.split(".lora_")[0].split(f".{family.layers}.", 1)[1] for name in weights)
    targets = sorted({module.split(".", 1)[1] for module in inside})
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": adapter.alpha * rank / adapter.rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": targets,
        "fan_in_fan_out": family.input_first,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
    }
    return settings, weights


def write_peft_folder(
    folder: Path,
    base: str,
    config: ModelConfig,
    adapter: AdapterConfig,
    state: Mapping[str, Tensor],
) -> None:
    """Write a LoRA folder for transformers' ``base`` into an existing folder."""
    settings, weights = to_peft(config, adapter, state)
    write_json(folder / CONFIG_FILE, {**settings, "base_model_name_or_path": base})
    save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt"})
