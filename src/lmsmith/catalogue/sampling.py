"""How a model is sampled where nobody says: as its makers advise."""

from __future__ import annotations

from dataclasses import dataclass

from lmsmith.catalogue import registry
from lmsmith.catalogue.resolving import Source
from lmsmith.catalogue.shelf import SHELF
from lmsmith.core.files import read_json

GENERATION_FILE = "generation_config.json"


@dataclass(frozen=True)
class Sampling:
    """What is meant where a temperature or a top-p is not given."""

    temperature: float = 0.8
    top_p: float = 0.95


def advised_sampling(source: Source) -> Sampling:
    """The makers' advice: of a fetched model, or in a Hugging Face folder; else our own."""
    record = registry.find(source.name)
    if source.name in SHELF and record is not None and record.path == source.path:
        shelved = SHELF[source.name]
        return Sampling(shelved.temperature, shelved.top_p)
    path = source.path / GENERATION_FILE
    if source.format != "hf" or not path.is_file():
        return Sampling()
    content = read_json(path)
    advice = content if isinstance(content, dict) else {}
    temperature, top_p = (advice.get(name) for name in ("temperature", "top_p"))
    usual = Sampling()
    return Sampling(_number(temperature, 2.0, usual.temperature), _number(top_p, 1.0, usual.top_p))


def _number(value: object, most: float, otherwise: float) -> float:
    return float(value) if isinstance(value, int | float) and 0 < value <= most else otherwise
