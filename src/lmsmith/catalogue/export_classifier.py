"""Write a classifier as a Hugging Face folder: …ForSequenceClassification, with equal logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lmsmith.catalogue.classifiers import ReadClassifier
from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json, write_json
from lmsmith.models.classifier import Classifier
from lmsmith.models.interop.bert import CLASSIFIER, HEAD, OWN_SETTINGS, POOLER, PREFIX
from lmsmith.models.interop.transformers import to_transformers
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.bpe import TOKENIZER_FILE
from lmsmith.tokenizers.hugging_face import to_hugging_face

CLASSES = {
    "openai-gpt": "OpenAIGPTForSequenceClassification",
    "gpt2": "GPT2ForSequenceClassification",
    "gpt_neo": "GPTNeoForSequenceClassification",
    "llama": "LlamaForSequenceClassification",
    "bert": CLASSIFIER,
}
"""Type of a model in transformers → its class with a linear layer on the last token's state, or on
the pooled first one of BERT."""

_SMALL = 2.0**-12
"""tanh(εx) is εx to 1e-7 for the states of a norm."""

CONTROL_NAMES = ("<|start|>", "<|delimiter|>", "<|extract|>")


def refuse_other_forms(model: Classifier) -> None:
    """UserError where no class of transformers computes the same."""
    form = model.config.form
    if form == "similarity":
        problem = "it adds the states of both orders, and transformers' classes read one sequence"
    elif form == "multiple_choice":
        problem = "it chooses among sequences, and transformers has no such class for this body"
    else:
        return
    raise UserError(
        f"{model.config.task or 'the classifier'} cannot be exported: {problem}",
        "serve it here (lmsmith serve, POST /v1/tasks), or write the task as classification or "
        "entailment",
    )


def classifier_settings(
    model: Classifier, pad_token: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Contents of config.json, and the weights by transformers' names.

    The control tokens' embeddings follow the vocabulary's, and W_y is ``score``, or BERT's
    ``classifier``. BERT's class always has a pooler: an encoder without one gets x → εx, whose tanh
    is εx to rounding, and W_y / ε.

    Raises:
        UserError: transformers has no class that computes the same.
    """
    refuse_other_forms(model)
    config, state = model.config, dict(model.decoder.state_dict())
    extra = model.controls.weight.detach()
    shape = replace(config.model, vocabulary_size=config.model.vocabulary_size + len(extra))
    state["token_embedding.weight"] = torch.cat([state["token_embedding.weight"], extra])
    if "unembedding.weight" in state:
        state["unembedding.weight"] = torch.cat([state["unembedding.weight"], 0 * extra])
    without_pooler = not config.model.causal and not config.model.pooler
    settings, weights = to_transformers(shape, state)
    weights.pop("lm_head.weight", None)
    head = model.head.weight.detach()
    if without_pooler:
        weights[f"{PREFIX}{POOLER}.weight"] = _SMALL * torch.eye(shape.width)
        weights[f"{PREFIX}{POOLER}.bias"] = torch.zeros(shape.width)
        head = head / _SMALL
    name = "score" if config.model.causal else HEAD
    weights[f"{name}.weight"] = head
    if not config.model.causal:
        bias = model.head.bias
        weights[f"{name}.bias"] = torch.zeros(len(head)) if bias is None else bias.detach()
    labels = list(config.labels) or ["LABEL_0"]
    return {
        **settings,
        "architectures": [CLASSES[settings["model_type"]]],
        "problem_type": "single_label_classification" if config.labels else "regression",
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "pad_token_id": pad_token,
        "lmsmith": {name: getattr(config, name) for name in OWN_SETTINGS},
    }, weights


def write_classifier(read: ReadClassifier, folder: Path, dtype: torch.dtype) -> None:
    """Write config, weights and tokenizer into an existing folder.

    The tokenizer puts the control tokens where the model was trained with them: around a text, and
    between two. A text that spells one becomes it there; only lmsmith prevents that.

    Raises:
        UserError: transformers has no class that computes the same.
    """
    settings, weights = classifier_settings(read.model, read.tokenizer.end_of_text)
    write_json(folder / "config.json", {**settings, "dtype": str(dtype).removeprefix("torch.")})
    cast = {
        name: tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }
    save_file(cast, folder / "model.safetensors", metadata={"format": "pt"})
    shape = read.model.config.model
    _write_tokenizer(read.tokenizer, shape.vocabulary_size, folder, int(shape.segments > 1))


def _write_tokenizer(
    tokenizer: Tokenizer, vocabulary_size: int, folder: Path, segment: int
) -> None:
    """``segment`` is that of a second text and what follows it."""
    to_hugging_face(tokenizer, folder)
    path = folder / TOKENIZER_FILE
    description: Any = read_json(path)
    unused = range(tokenizer.vocabulary_size, vocabulary_size)
    names = [*(f"[unused{token}]" for token in unused), *CONTROL_NAMES]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": token, "content": name, "special": True, **flags}
        for token, name in enumerate(names, tokenizer.vocabulary_size)
    ]
    description["added_tokens"] = [*(description.get("added_tokens") or []), *added]
    start, delimiter, extract = ({"SpecialToken": {"id": n, "type_id": 0}} for n in CONTROL_NAMES)
    end = {"SpecialToken": {"id": CONTROL_NAMES[2], "type_id": segment}}
    text, second = ({"Sequence": {"id": p, "type_id": t}} for p, t in (("A", 0), ("B", segment)))
    description["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start, text, extract],
        "pair": [start, text, delimiter, second, end],
        "special_tokens": {
            name: {"id": name, "ids": [vocabulary_size + n], "tokens": [name]}
            for n, name in enumerate(CONTROL_NAMES)
        },
    }
    write_json(path, description)
    config: Any = read_json(folder / "tokenizer_config.json")
    pad = tokenizer.control_tokens[tokenizer.end_of_text]
    own = (
        {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]} if segment else {}
    )
    write_json(folder / "tokenizer_config.json", {**config, **own, "pad_token": pad})
