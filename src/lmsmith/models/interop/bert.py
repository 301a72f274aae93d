"""BERT folders of transformers: the encoder and its heads for pretraining, read and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lmsmith.core.config import SettingsError, decode, encode
from lmsmith.core.errors import UserError
from lmsmith.core.files import write_json
from lmsmith.models.classifier import Classifier, ClassifierConfig
from lmsmith.models.encoder import Encoder
from lmsmith.models.folder import without_weights
from lmsmith.models.interop.folders import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    naming,
    read_settings,
    read_weights,
)
from lmsmith.models.interop.transformers import State, from_transformers, to_transformers
from lmsmith.models.masked_lm import MaskedLM, MaskedLMConfig
from lmsmith.models.weights_file import require_weight

Model = TypeVar("Model", bound=nn.Module)

PREFIX = "bert."
CLASSIFIER, HEAD, POOLER = "BertForSequenceClassification", "classifier", "pooler.dense"
OWN_SETTINGS = ("task", "form", "texts", "length", "mean", "deviation")
"""Settings of a classifier that transformers has not: ours in config.json, under ``lmsmith``."""
_HEADS = ("cls.", "classifier.")
_FIX = "its config.json and its weights are not of one model"

_MASKED = {
    "transform.weight": "cls.predictions.transform.dense.weight",
    "transform.bias": "cls.predictions.transform.dense.bias",
    "transform_norm.weight": "cls.predictions.transform.LayerNorm.weight",
    "transform_norm.bias": "cls.predictions.transform.LayerNorm.bias",
    "bias": "cls.predictions.bias",
}
_NEXT = {
    "next_sentence.weight": "cls.seq_relationship.weight",
    "next_sentence.bias": "cls.seq_relationship.bias",
}
_TIED = {
    "cls.predictions.decoder.weight": "decoder.token_embedding.weight",
    "cls.predictions.decoder.bias": "bias",
}
"""Written again by some versions: theirs → ours, which it must equal."""


def read_bert_folder(folder: Path) -> Encoder | MaskedLM:
    """A BERT model as float32, in evaluation mode: with its masked-token head where it has one.

    Raises:
        UserError: a file is missing or damaged, the weights are pickled, it has unsupported
            settings, or it is no BERT.
    """
    settings = read_settings(folder)
    with naming(folder):
        return from_bert(settings, read_weights(folder))


def from_bert(settings: Mapping[str, Any], state: State) -> Encoder | MaskedLM:
    """The model of the contents of transformers' config.json, and of its weights by name.

    The head of `BertForSequenceClassification` is left out: what is read is its encoder
    (`from_bert_classifier` reads both).

    Raises:
        UserError: another family, an unsupported setting, or weights that are missing, of another
            shape, or without a place.
    """
    if settings.get("model_type") != "bert":
        raise UserError(
            f"model_type = {settings.get('model_type')}: not an encoder", "name a BERT model"
        )
    # Files that were converted from TensorFlow call a norm's parameters gamma and beta.
    state = {_renamed(name): tensor for name, tensor in state.items()}
    heads = {name: each for name, each in state.items() if name.startswith(_HEADS)}
    body = {name: each for name, each in state.items() if name not in heads}
    shape, found = from_transformers(settings, body)
    if not any(name.startswith("cls.predictions.") for name in heads):
        return _loaded(Encoder, shape, found)
    config = MaskedLMConfig(shape, next_sentence=_NEXT["next_sentence.weight"] in heads)
    if config.next_sentence and not shape.pooler:
        raise UserError("the model's weights lack bert.pooler.dense.weight", "load them again")
    whole = {f"decoder.{name}": each for name, each in found.items()}
    with without_weights():
        shapes = {name: tuple(each.shape) for name, each in MaskedLM(config).state_dict().items()}
    for ours, theirs in (_MASKED | (_NEXT if config.next_sentence else {})).items():
        if theirs not in heads:
            raise UserError(f"the model's weights lack {theirs}", "load them again")
        require_weight(theirs, heads[theirs], shapes[ours], _FIX)
        whole[ours] = heads[theirs]
    for theirs, ours in _TIED.items():
        if theirs in heads and not torch.equal(heads[theirs], whole[ours]):
            raise UserError(
                f"{theirs} is not tied to {ours}", "use a model whose embeddings are tied"
            )
    return _loaded(MaskedLM, config, whole)


def from_bert_classifier(
    settings: Mapping[str, Any], state: State, controls: tuple[int, int, int], place: str
) -> Classifier:
    """The classifier of the contents of a `BertForSequenceClassification` folder.

    Args:
        settings, state: as in `from_bert`.
        controls: ids that stand before a text, between two, and at the end; [CLS], [SEP] and
            [SEP], except in a folder that lmsmith wrote.
        place: of config.json, for messages.

    Raises:
        UserError: as `from_bert`; or no head, several labels of an example, or damaged settings.
    """
    if settings.get("problem_type") == "multi_label_classification":
        raise UserError("an example may have several labels", "use a model of one label each")
    names = [f"{HEAD}.weight", f"{HEAD}.bias"]
    if missing := [name for name in names if name not in state]:
        raise UserError(f"the model's weights lack {missing[0]}", "load them again")
    head, bias = (state[name] for name in names)
    encoder = from_bert(settings, state)
    if not isinstance(encoder, Encoder) or encoder.pooler is None:
        raise UserError(f"the model's weights lack {PREFIX}{POOLER}.weight", "load them again")
    # transformers writes no id2label where it is the default's
    labels = settings.get("id2label") or {n: f"LABEL_{n}" for n in range(len(head))}
    if settings.get("problem_type") == "regression" or len(head) == 1:
        labels = {}
    ours = settings.get("lmsmith") or {}
    given = {name: ours[name] for name in OWN_SETTINGS if name in ours}
    given = {"length": encoder.config.context} | given
    given |= {"labels": [str(labels[key]) for key in sorted(labels, key=int)], "head_bias": True}
    found, problems = decode(
        ClassifierConfig, {"model": encode(encoder.config), **given}, f"{place}: lmsmith"
    )
    if found is None or problems:
        raise SettingsError(problems)
    with without_weights():
        model = Classifier(found)
    require_weight(names[0], head, tuple(model.head.weight.shape), _FIX)
    require_weight(names[1], bias, tuple(model.head.bias.shape), _FIX)
    whole = {f"decoder.{name}": each for name, each in encoder.state_dict().items()}
    table = encoder.token_embedding.weight.detach()
    whole |= {"head.weight": head, "head.bias": bias, "controls.weight": table[list(controls)]}
    model.load_state_dict({name: each.float() for name, each in whole.items()}, assign=True)
    return model.requires_grad_(True).eval()


def _renamed(name: str) -> str:
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace(
        "LayerNorm.beta", "LayerNorm.bias"
    )


def _loaded(made: Callable[[Any], Model], config: Any, state: State) -> Model:
    with without_weights():
        model = made(config)
    model.load_state_dict({name: each.float() for name, each in state.items()}, assign=True)
    return model.requires_grad_(True).eval()


def to_bert(model: Encoder | MaskedLM) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The contents of config.json, and the weights: of `BertModel`, `BertForMaskedLM`, or
    `BertForPreTraining` where it says whether a sentence follows.

    Raises:
        UserError: transformers' BERT has not this shape.
    """
    encoder = model if isinstance(model, Encoder) else model.encoder
    settings, state = to_transformers(encoder.config, encoder.state_dict())
    if settings["model_type"] != "bert":
        raise UserError("transformers has no encoder of this shape", "use one like bert-base")
    if isinstance(model, Encoder):
        return settings, {name.removeprefix(PREFIX): each for name, each in state.items()}
    own, names = model.state_dict(), dict(_MASKED)
    kind = "BertForMaskedLM"
    if model.config.next_sentence:
        kind, names = "BertForPreTraining", names | _NEXT
    else:
        state = {name: each for name, each in state.items() if ".pooler." not in name}
    state |= {theirs: own[ours] for ours, theirs in names.items()}
    return settings | {"architectures": [kind], "tie_word_embeddings": True}, state


def write_bert_folder(
    folder: Path, model: Encoder | MaskedLM, dtype: torch.dtype = torch.float32, pad: int = 0
) -> None:
    """Write config.json and model.safetensors into an existing folder.

    Raises:
        UserError: transformers' BERT has not this shape.
    """
    settings, weights = to_bert(model)
    name = str(dtype).removeprefix("torch.")
    write_json(folder / CONFIG_FILE, {**settings, "pad_token_id": pad, "dtype": name})
    cast = {
        name: tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }
    save_file(cast, folder / WEIGHTS_FILE, metadata={"format": "pt"})
