"""Adapters apart from the model that they stand on, so that several share its weights."""

from __future__ import annotations

from dataclasses import dataclass

from lmsmith.catalogue.reading import (
    NoBase,
    ReadModel,
    load_any_tokenizer,
    naming,
    peft_base,
    read_card,
    same_tokens,
)
from lmsmith.catalogue.resolve import ADAPTER_FILE, Source, resolve
from lmsmith.core.errors import UserError, refusing_damage
from lmsmith.models.adapters import LowRank, add_up, low_rank
from lmsmith.models.config import ModelConfig
from lmsmith.models.folder import (
    has_lower_adapters,
    load_tokenizer,
    read_adapters,
    read_model_config,
)
from lmsmith.models.interop.peft import from_peft, read_peft_folder
from lmsmith.models.interop.transformers import parameter_shapes
from lmsmith.models.weights_file import require_weight
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.bpe import TOKENIZER_FILE

_MOST = 8
"""Adapters that may stand on one another."""


@dataclass(frozen=True)
class Adapters:
    """Adapters, the lowest first, and the model that they stand on."""

    base: Source
    own: tuple[Source, ...]


def is_adapter(source: Source) -> bool:
    """Whether the files are adapters alone, PEFT's or ours, for a model that writes."""
    if source.format == "peft":
        return True
    ours = source.format == "lmsmith" and (source.path / ADAPTER_FILE).is_file()
    return ours and read_model_config(source.path)[0] == "decoder"


def find_adapters(source: Source, on: Source | None = None) -> Adapters:
    """The adapters of a folder, and those below them.

    Args:
        source: the topmost folder.
        on: a model that takes the place of the one below all adapters, or is in their stack.

    Raises:
        UserError: a folder of adapters or, without ``on``, the base is not there; or they have no
            base.
    """
    own = [source]
    while is_adapter(own[0]) and not (on and _same(own[0], on)):
        if len(own) > _MOST:
            raise UserError(f"{source.path}: its adapters stand on no model", "get it again")
        try:
            own.insert(0, _base(own[0]))
        except NoBase:
            if on is None:
                raise
            own.insert(0, on)
            break
    return Adapters(on or own[0], tuple(own[1:]))


def _same(one: Source, other: Source) -> bool:
    return one.path.resolve() == other.path.resolve()


def _base(source: Source) -> Source:
    if source.format == "peft":
        return peft_base(source.path)
    base = read_adapters(source.path)[2]
    if (base / "config.json").is_file():
        return resolve(base)
    gone = f"no longer at {base.resolve()}"
    if has_lower_adapters(source.path):
        raise UserError(
            f"{source.path} holds adapters that stand on other adapters, which are {gone}",
            "put them back there",
        )
    raise NoBase(
        f"{source.path} holds adapters alone, and the model that they were made for is {gone}",
        "put it back there, or serve that model too and name it: --adapters-on NAME",
    )


def read_low_rank(adapters: Adapters, base: ReadModel) -> LowRank:
    """All of the adapters' matrices, for this base.

    Raises:
        UserError: they are damaged, or made for a model of another shape.
    """
    found: LowRank = {}
    for source in adapters.own:
        with refusing_damage(source.path):
            found = add_up(found, _read(source, base.decoder.config))
    return found


def _read(source: Source, config: ModelConfig) -> LowRank:
    if source.format == "peft":
        with naming(source.path):
            return low_rank(*from_peft(config, read_peft_folder(source.path)))
    settings, state, _ = read_adapters(source.path)
    path, shapes = source.path / ADAPTER_FILE, parameter_shapes(config)
    fix = "its base is another model"
    for key, tensor in state.items():
        name, _, which = key.rpartition(".")
        shape = tuple(shapes.get(f"{name}.weight", ()))
        whole = {f"{name}.down", f"{name}.up"} <= set(state) and len(shape) == 2
        if not whole or which not in ("down", "up"):
            raise UserError(f"{path}: {key} is no adapter of a layer of this model", fix)
        outputs, inputs = shape
        wanted = (settings.rank, inputs) if which == "down" else (outputs, settings.rank)
        require_weight(f"{path}: {key}", tensor, wanted, fix)
    return low_rank(settings, state)


def read_adapted(source: Source, base: ReadModel) -> ReadModel:
    """The base with the tokenizer, the card and the name of the adapters' folder.

    Raises:
        UserError: the tokenizer has other tokens than the base's.
    """
    tokenizer = _tokenizer(source, base)
    if not same_tokens(tokenizer, base.tokenizer):
        raise UserError(
            f"{source.path}: its tokenizer has other tokens than that of {base.source.name}",
            "its base is another model",
        )
    card = read_card(source.path) or {"parents": [base.source.name]}
    return ReadModel(base.decoder, tokenizer, source, card)


def _tokenizer(source: Source, base: ReadModel) -> Tokenizer:
    if source.format == "lmsmith":
        return load_tokenizer(source.path)
    own = (source.path / TOKENIZER_FILE).is_file()
    return load_any_tokenizer(source.path) if own else base.tokenizer
