"""Model folders: config.json, model.safetensors, tokenizer.json, chat.json, card.json."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lmsmith.core.config import decode, report_problems
from lmsmith.core.errors import UserError
from lmsmith.core.files import atomic_folder, read_json, write_json
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.tokenizers import Tokenizer

KINDS = {"decoder": Decoder, "scalar": ScalarModel}


def save_model(
    folder: Path, model: Decoder | ScalarModel, tokenizer: Tokenizer, card: dict[str, Any]
) -> None:
    """Write a model folder atomically, replacing one that is there.

    Args:
        folder: where.
        model: a decoder, or a reward or value model.
        tokenizer: saved beside it.
        card: parents, recipe, data, metrics: anything JSON can hold.
    """
    decoder = model.decoder if isinstance(model, ScalarModel) else model
    kind = "scalar" if isinstance(model, ScalarModel) else "decoder"
    with atomic_folder(folder) as temporary:
        write_json(temporary / "config.json", {"kind": kind, "model": asdict(decoder.config)})
        tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
        save_file(tensors, temporary / "model.safetensors")
        tokenizer.save(temporary)
        write_json(temporary / "card.json", card)


def read_model_config(folder: Path) -> tuple[str, ModelConfig]:
    """Kind (``decoder`` or ``scalar``) and shape of a model folder.

    Raises:
        UserError: it is not a model folder, or its config is not one of ours.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            f"{folder} is not a model folder: it has no config.json",
            "name a folder that a stage wrote, such as runs/quickstart/ppo/model",
        )
    content = read_json(path)
    content = content if isinstance(content, dict) else {}
    kind = content.get("kind")
    if kind not in KINDS or not isinstance(content.get("model"), dict):
        raise UserError(f"{path} is not an lmsmith model's config", "name another model folder")
    config, problems = decode(ModelConfig, content["model"], str(path))
    if config is None or problems:
        raise report_problems(problems)
    return kind, config


def load_model(folder: Path) -> Decoder | ScalarModel:
    """Read a model folder's weights, in float32 and evaluation mode.

    Raises:
        UserError: the folder, its config or its weights are missing, damaged or do not match.
    """
    kind, config = read_model_config(folder)
    path = folder / "model.safetensors"
    with torch.device("meta"):
        decoder = Decoder(config)
        model = ScalarModel(decoder) if kind == "scalar" else decoder
    try:
        tensors = load_file(path)
        model.load_state_dict(tensors, assign=True)
    except (OSError, SafetensorError, RuntimeError, json.JSONDecodeError) as error:
        raise UserError(
            f"{path} cannot be read as the weights of this model: {error}",
            "run the stage that wrote it again",
        ) from error
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def load_decoder(folder: Path) -> Decoder:
    """Like `load_model`, for a model that writes text."""
    model = load_model(folder)
    if not isinstance(model, Decoder):
        raise UserError(
            f"{folder} is a reward or value model: it gives numbers, not text",
            "name a folder that pretrain, sft or ppo wrote",
        )
    return model


def load_scalar_model(folder: Path) -> ScalarModel:
    """Like `load_model`, for a reward or value model."""
    model = load_model(folder)
    if not isinstance(model, ScalarModel):
        raise UserError(
            f"{folder} is a language model: it has no reward head",
            "name a folder that the reward stage wrote",
        )
    return model


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder."""
    return Tokenizer.load(folder)
