"""What temperature and top-p are meant where none is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmsmith.catalogue import registry
from lmsmith.catalogue.resolve import Sampling, Source, advised_sampling, card_of_sampling
from lmsmith.core.files import write_json


def test_a_fetched_model_is_sampled_as_its_makers_advise(tmp_path: Path) -> None:
    with registry.registering("smollm2-135m") as partial:
        (partial / "model.gguf").write_bytes(b"")
        registry.write_record(
            partial, registry.Record("smollm2-135m", "gguf", "model.gguf", "PyPI", "0", 0, "2026")
        )
    path = registry.folder_of("smollm2-135m") / "model.gguf"
    assert advised_sampling(Source("gguf", path, "smollm2-135m")) == Sampling(0.2, 0.9)
    assert advised_sampling(Source("gguf", tmp_path / "a.gguf", "a.gguf")) == Sampling(0.8, 0.95)
    registry.remove("smollm2-135m")


@pytest.mark.parametrize(
    ("advice", "expected"),
    [
        ({"temperature": 0.6, "top_p": 0.9}, Sampling(0.6, 0.9)),
        ({"temperature": 0.6}, Sampling(0.6, 0.95)),
        ({"temperature": "hot", "top_p": 7}, Sampling()),
        ([], Sampling()),
    ],
)
def test_a_hugging_face_folder_may_hold_advice(
    advice: object, expected: Sampling, tmp_path: Path
) -> None:
    write_json(tmp_path / "generation_config.json", advice)
    kept = card_of_sampling(Source("hf", tmp_path, "x"))
    write_json(tmp_path / "made/card.json", {"stage": "sft", **kept})
    assert advised_sampling(Source("lmsmith", tmp_path / "made", "ours@2")) == expected
    assert advised_sampling(Source("hf", tmp_path, "x")) == expected
    assert advised_sampling(Source("lmsmith", tmp_path, "x")) == Sampling()
