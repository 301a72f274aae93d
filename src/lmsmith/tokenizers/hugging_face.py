"""Hugging Face folders: tokenizers read from them, and written for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.core.files import atomic_write, read_json, write_json
from lmsmith.tokenizers.bpe import TOKENIZER_FILE
from lmsmith.tokenizers.importing import import_tokenizer
from lmsmith.tokenizers.special import END_OF_TEXT, END_OF_TURN, JINJA_TEMPLATE
from lmsmith.tokenizers.tokenizer import Tokenizer

CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
_VARIABLES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def load_hugging_face(folder: Path | str) -> Tokenizer:
    """Read ``tokenizer.json`` with the control tokens and the chat template beside it.

    These come from ``tokenizer_config.json``, ``special_tokens_map.json``,
    ``chat_template.jinja`` (which goes first) and ``generation_config.json``, where they are.

    Raises:
        UserError: there is no ``tokenizer.json``, or a file is damaged.
    """
    folder = Path(folder)
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise UserError(
            f"{folder} has no {TOKENIZER_FILE}",
            "make it with transformers: AutoTokenizer.from_pretrained(…).save_pretrained(…); "
            "GPT-2's encoder.json and GGUF files are read as they are",
        )
    description = _object(path)
    if not isinstance(description.get("model"), dict):
        raise UserError(f"{path}: not a tokenizer: it has no model", "fetch it again")
    config = _object(folder / CONFIG_FILE)
    names = _object(folder / "special_tokens_map.json") | config
    variables = {key: name for key in _VARIABLES if (name := _name_of(names.get(key))) is not None}
    ids = {t["content"]: t["id"] for t in description.get("added_tokens") or []}
    by_id = {token: name for name, token in ids.items()}
    generation = _object(folder / "generation_config.json").get("eos_token_id")
    ends = generation if isinstance(generation, list) else [generation]
    if "eos_token" not in variables and (found := [by_id[e] for e in ends if e in by_id]):
        variables["eos_token"] = found[0]
    try:
        return import_tokenizer(
            description,
            variables=variables,
            jinja=_template(folder, config),
            adds_start=_adds_start(description, config, variables.get("bos_token")),
            stops=[by_id[end] for end in ends if end in by_id],
        )
    except UserError as error:
        raise UserError(f"{folder}: {error.problem}", error.mend) from error


def to_hugging_face(tokenizer: Tokenizer, folder: Path | str) -> None:
    """Write a folder from which transformers' AutoTokenizer gives the same ids.

    `apply_chat_template` writes the same conversation; but a message that spells a control token
    becomes one there, which only lmsmith prevents. What text is cleaned with (GPT-1: ftfy) is no
    part of such a folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    (folder / "chat.json").unlink()
    variables, template = hugging_face_variables(tokenizer), hugging_face_template(tokenizer)
    write_json(
        folder / CONFIG_FILE,
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **variables,
        },
    )
    write_json(folder / "special_tokens_map.json", variables)
    atomic_write(folder / TEMPLATE_FILE, template)


def hugging_face_variables(tokenizer: Tokenizer) -> dict[str, str]:
    """Names of the control tokens as transformers calls them."""
    if tokenizer.is_own:
        return {"bos_token": END_OF_TEXT, "eos_token": END_OF_TURN, "pad_token": END_OF_TEXT}
    return dict(tokenizer.format.variables)


def hugging_face_template(tokenizer: Tokenizer) -> str:
    """The chat template in Jinja."""
    return JINJA_TEMPLATE if tokenizer.is_own else tokenizer.format.jinja or ""


def _object(path: Path) -> dict[str, Any]:
    """What a JSON file holds; nothing if there is none."""
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected an object", "fetch it again")
    return content


def _name_of(token: object) -> str | None:
    """A token's text, which is written plainly or as an object."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _template(folder: Path, config: Mapping[str, Any]) -> str:
    path = folder / TEMPLATE_FILE
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error})", "fetch it again") from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        named = {each.get("name"): each.get("template") for each in template}
        template = named.get("default")
    return template if isinstance(template, str) else ""


def _adds_start(
    description: Mapping[str, Any], config: Mapping[str, Any], start: str | None
) -> bool:
    """Whether encoding with this tokenizer puts ``bos_token`` first."""
    if isinstance(config.get("add_bos_token"), bool):
        return bool(config["add_bos_token"])
    step = description.get("post_processor") or {}
    steps = step.get("processors", [step])
    firsts = [s["single"][0] for s in steps if s.get("type") == "TemplateProcessing"]
    return any((f.get("SpecialToken") or {}).get("id") == start for f in firsts)
