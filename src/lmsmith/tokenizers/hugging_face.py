"""Hugging Face folders: tokenizers read from them, and written for them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError, refusing_damage
from lmsmith.core.files import atomic_write, read_json, write_json
from lmsmith.tokenizers.bpe import TOKENIZER_FILE
from lmsmith.tokenizers.chat_format import (
    END_OF_TEXT,
    END_OF_TURN,
    JINJA_TEMPLATE,
    MOST_START,
)
from lmsmith.tokenizers.description import MOST_BYTES, MOST_SMALL_BYTES
from lmsmith.tokenizers.import_tokenizer import import_tokenizer
from lmsmith.tokenizers.tokenizer import Tokenizer

CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
_VARIABLES = [f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")]


def load_hugging_face(folder: Path | str) -> Tokenizer:
    """Read ``tokenizer.json`` with the control tokens and the chat template beside it.

    These come from ``tokenizer_config.json``, ``special_tokens_map.json``,
    ``chat_template.jinja`` (which has precedence), and ``generation_config.json`` or
    ``config.json`` (tokens that end a text), where they are.

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
    try:
        with refusing_damage("a file beside the tokenizer"):
            return _read(folder)
    except UserError as error:
        raise UserError(f"{folder}: {error.problem}", error.fix) from error


def _read(folder: Path) -> Tokenizer:
    description = _object(folder / TOKENIZER_FILE, MOST_BYTES)
    config = _object(folder / CONFIG_FILE)
    names = _object(folder / "special_tokens_map.json") | config
    variables = {key: name for key in _VARIABLES if (name := _name_of(names.get(key))) is not None}
    description = _with_specials(description, names)
    ends = _end_ids(folder)
    by_id = _names_of(description, set(ends))
    stops = [by_id[end] for end in ends if end in by_id]
    if "eos_token" not in variables and stops:
        variables["eos_token"] = stops[0]
    if "eos_token" not in variables and "sep_token" in variables:  # BERT's ends every text
        variables["eos_token"] = variables["sep_token"]
    return import_tokenizer(
        description,
        variables=variables,
        jinja=_template(folder, config),
        text_start=_text_start(description, config, variables.get("bos_token")),
        stops=stops,
        size=(folder / TOKENIZER_FILE).stat().st_size,
    )


def _names_of(description: Mapping[str, Any], ids: Container[int]) -> dict[int, str]:
    """Tokens as they are written, of some ids."""
    vocabulary = description["model"].get("vocab") or {}
    listed = (
        ((entry[0], token) for token, entry in enumerate(vocabulary))
        if isinstance(vocabulary, list)
        else vocabulary.items()
    )
    added = ((token["content"], token["id"]) for token in description.get("added_tokens") or [])
    return {token: name for name, token in itertools.chain(listed, added) if token in ids}


def _end_ids(folder: Path) -> list[int]:
    """The ids at which a reply ends, of the first file that names any."""
    for path in (folder / "generation_config.json", folder / "config.json"):
        found = _object(path).get("eos_token_id")
        if found is None:
            continue
        ends = [
            each for each in (found if isinstance(found, list) else [found]) if each is not None
        ]
        if any(type(each) is not int for each in ends):
            raise UserError(
                f"{path}: eos_token_id = {json.dumps(found)}: expected a token's id, or a list",
                "fetch the file again",
            )
        return ends
    return []


def to_hugging_face(tokenizer: Tokenizer, folder: Path | str) -> None:
    """Write a folder from which transformers' AutoTokenizer gives the same ids.

    `apply_chat_template` writes the same conversation; but a message that spells a control token
    becomes one there, which only lmsmith prevents. What text is cleaned with (GPT-1: ftfy) is no
    part of such a folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / TOKENIZER_FILE, described_with_start(tokenizer))
    own = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TURN, "pad_token": END_OF_TEXT}
    variables = own if tokenizer.is_own else dict(tokenizer.format.variables)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": variables.get("bos_token") in tokenizer.format.text_start,
        **variables,
    }
    write_json(folder / CONFIG_FILE, config)
    write_json(folder / "special_tokens_map.json", variables)
    atomic_write(folder / TEMPLATE_FILE, hugging_face_template(tokenizer))


def hugging_face_template(tokenizer: Tokenizer) -> str:
    """The chat template in Jinja."""
    return JINJA_TEMPLATE if tokenizer.is_own else tokenizer.format.jinja or ""


def _object(path: Path, most: int = MOST_SMALL_BYTES) -> dict[str, Any]:
    """What a JSON file of at most so many bytes holds; nothing if there is none."""
    if not path.is_file():
        return {}
    content = read_json(path, most)
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
            if path.stat().st_size > MOST_SMALL_BYTES:
                raise UserError(f"{path}: too large for a template", "fetch it again")
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot be read ({error})", "fetch it again") from error
    template = config.get("chat_template")
    if isinstance(template, list):  # several by name
        template = {each.get("name"): each.get("template") for each in template}.get("default")
    return template if isinstance(template, str) else ""


def _with_specials(description: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """The description, with those tokens special that the files beside it call so."""
    listed = [names.get("additional_special_tokens"), names.get("extra_special_tokens")]
    parts = [each.values() if isinstance(each, Mapping) else each or [] for each in listed]
    decoder = names.get("added_tokens_decoder") or {}
    decoded = [token for token in decoder.values() if token.get("special")]
    specials = {_name_of(token) for part in (*parts, decoded) for token in part}
    added = [
        token | {"special": True} if token["content"] in specials else token
        for token in description.get("added_tokens") or []
    ]
    return {**description, "added_tokens": added}


def _text_start(
    description: Mapping[str, Any], config: Mapping[str, Any], bos: str | None
) -> tuple[str, ...]:
    """The post-processor's start of a text; where ``add_bos_token`` is there, it decides on bos.

    llama.cpp reads it so, and transformers up to version 4; 5 reads the post-processor alone.
    """
    start = _processor_start(description)
    adds = config.get("add_bos_token")
    if adds is False:
        return tuple(name for name in start if name != bos)
    if adds is True and bos is not None and bos not in start:
        return (bos, *start)
    return start


def _processor_start(description: Mapping[str, Any]) -> tuple[str, ...]:
    """The tokens that a ``tokenizer.json``'s post-processor puts before a text."""
    step = description.get("post_processor") or {}
    names = list(itertools.islice(_names_before(step.get("processors", [step])), MOST_START + 1))
    if len(names) > MOST_START:
        raise UserError(
            f"the tokenizer puts more than {MOST_START} tokens before each text", "fetch it again"
        )
    return tuple(names)


def _names_before(processors: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for each in processors:
        if each.get("type") in ("BertProcessing", "RobertaProcessing"):
            yield each["cls"][0]
        if each.get("type") == "TemplateProcessing":
            for piece in each["single"]:
                if "SpecialToken" not in piece:
                    break
                name = piece["SpecialToken"]["id"]
                yield from each["special_tokens"][name].get("tokens") or [name]


def described_with_start(tokenizer: Tokenizer) -> dict[str, Any]:
    """Contents of a ``tokenizer.json`` whose post-processor puts before a text what we do."""
    description, names = dict(tokenizer.description), tokenizer.format.text_start
    if _processor_start(description) == names:
        return description
    if not names:
        return description | {"post_processor": None}
    special = [{"SpecialToken": {"id": name, "type_id": 0}} for name in names]
    text, second = ({"Sequence": {"id": part, "type_id": n}} for n, part in enumerate("AB"))
    return description | {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [*special, text],
            "pair": [*special, text, second],
            "special_tokens": {
                name: {"id": name, "ids": [token], "tokens": [name]}
                for name, token in zip(names, tokenizer.text_start, strict=True)
            },
        }
    }
