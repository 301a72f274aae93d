"""What files say of a model's ends and rotary positions is read, or refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lmsmith.catalogue.reading import read_model
from lmsmith.core.errors import UserError
from lmsmith.models.interop.folders import read_transformers_config
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.gguf import gguf_metadata, tokenizer_from_gguf

OWN = Tokenizer.train(["hello there, how are you?"] * 4, 300)


def changed(folder: Path, values: dict[str, Any]) -> Path:
    """The folder with these values in its config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


@pytest.mark.parametrize("listed", [True, False])
def test_ends_that_config_alone_names_are_read(zoo: Path, tmp_path: Path, listed: bool) -> None:
    folder = Path(shutil.copytree(zoo / "eos_in_config", tmp_path / "model"))
    ids = read_model(folder).tokenizer._ids_by_name
    begin, end = ids["<|begin|>"], ids["<|end_of_text|>"]
    for generation in (True, False):
        if not generation:
            (folder / "generation_config.json").unlink()
        changed(folder, {"eos_token_id": [end, begin] if listed else begin})
        assert begin in read_model(folder).tokenizer.stop_tokens
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    assert begin not in read_model(folder).tokenizer.stop_tokens


@pytest.mark.parametrize("part", ["bos", "eos", "eot", "eom", "padding", "unknown", "seperator"])
@pytest.mark.parametrize("token", [300_000, -1, "1"])
def test_a_gguf_file_with_an_id_out_of_range_is_refused_by_name(part: str, token: object) -> None:
    metadata = gguf_metadata(OWN) | {f"tokenizer.ggml.{part}_token_id": token}
    with pytest.raises(UserError, match=f"{part}_token_id = {token}: expected the id of a token"):
        tokenizer_from_gguf(metadata)


@pytest.mark.parametrize("found", ["<|eot_id|>", [["1"]], {"id": 1}, True, 3.0])
def test_ends_that_are_no_ids_are_refused(zoo: Path, tmp_path: Path, found: object) -> None:
    folder = Path(shutil.copytree(zoo / "eos_in_config", tmp_path / "model"))
    (folder / "generation_config.json").unlink()
    changed(folder, {"eos_token_id": found})
    with pytest.raises(UserError, match=r"config\.json: eos_token_id = .*expected a token's id"):
        read_model(folder)


@pytest.mark.parametrize("token", [[1], True])
def test_a_gguf_file_with_an_id_that_is_no_number_is_refused(token: object) -> None:
    metadata = gguf_metadata(OWN) | {"tokenizer.ggml.eos_token_id": token}
    with pytest.raises(UserError, match=r"eos_token_id = .*expected the id of a token"):
        tokenizer_from_gguf(metadata)


def test_a_sentencepiece_gguf_without_ids_has_llama_cpps() -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "a"]
    tokenizer = tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.scores": [0.0] * len(tokens),
            "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 1],
        }
    )
    assert (tokenizer.text_start, tokenizer.stop_tokens) == ((1,), (2,))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"rope_scaling": "linear"}, 'rope_scaling = "linear": an object'),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, 'factor = "2": a number'),
        ({"rope_scaling": {"type": "linear"}}, "it has no factor"),
        ({"hidden_size": "64"}, 'width = "64": a whole number'),
        ({"num_hidden_layers": 2.0}, r"layers = 2\.0: a whole number"),
        ({"vocab_size": None}, "vocabulary_size = None: a whole number"),
        ({"max_position_embeddings": None}, "of the wrong kind"),
    ],
)
def test_values_of_the_wrong_kind_are_named(
    zoo: Path, tmp_path: Path, values: dict[str, Any], problem: str
) -> None:
    folder = changed(Path(shutil.copytree(zoo / "chatml", tmp_path / "model")), values)
    with pytest.raises(UserError, match=problem):
        read_model(folder)


LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
DEFAULT = {"rope_type": "default", "rope_theta": 10_000.0}


@pytest.mark.parametrize(
    "values",
    [
        {"rope_parameters": DEFAULT, "rope_scaling": LINEAR},
        {"rope_parameters": LINEAR, "rope_scaling": None},
        {"rope_parameters": LINEAR, "rope_scaling": {"type": "dynamic", "factor": 4.0}},
        {"rope_parameters": DEFAULT, "rope_scaling": {}},
        {"rope_parameters": DEFAULT, "rope_scaling": {"type": "yarn", "factor": 4.0}},
    ],
)
def test_rotary_positions_are_those_that_transformers_reads(
    zoo: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    transformers = pytest.importorskip("transformers")
    folder = changed(Path(shutil.copytree(zoo / "chatml", tmp_path / "model")), values)
    theirs = transformers.AutoConfig.from_pretrained(folder).rope_parameters
    ours = read_transformers_config(folder)
    method = "default" if ours.rope_scaling.method == "none" else ours.rope_scaling.method
    assert method == theirs.get("rope_type", theirs.get("type"))
    assert ours.rope_theta == theirs["rope_theta"]
    if method != "default":
        assert ours.rope_scaling.factor == theirs["factor"]


def test_an_unknown_scaling_beside_known_parameters_is_refused(zoo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(zoo / "chatml", tmp_path / "model"))
    changed(folder, {"rope_parameters": DEFAULT, "rope_scaling": {"type": "longrope"}})
    with pytest.raises(UserError, match="longrope"):
        read_transformers_config(folder)
