"""MarianMTModel of transformers on random weights: equal logits, both directions, and beams."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.generation.beam import BeamSettings
from lmsmith.generation.translation import beam_translate
from lmsmith.models.config import EncoderDecoderConfig
from lmsmith.models.encoder_decoder import EncoderDecoder
from lmsmith.models.interop.marian import (
    from_marian,
    is_marian,
    read_marian_folder,
    to_marian,
    write_marian_model,
)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")

VOCABULARY, START, END = 31, 30, 0


def their_model(activation: str = "swish", **changes: Any) -> Any:
    """With no weight zero or one."""
    settings = {
        "vocab_size": VOCABULARY, "max_position_embeddings": 40, "d_model": 16,
        "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24,
        "activation_function": activation, "scale_embedding": True, "pad_token_id": START,
        "eos_token_id": END, "decoder_start_token_id": START, "forced_eos_token_id": None,
    } | changes  # fmt: skip
    model = transformers.MarianMTModel(transformers.MarianConfig(**settings)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "embed_positions" not in name:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        model.final_logits_bias.normal_(0, 0.5, generator=generator)
    return model


def ours_of(model: Any) -> EncoderDecoder:
    config, state = from_marian(model.config.to_dict(), model.state_dict())
    ours = EncoderDecoder(config).eval()
    ours.load_state_dict(state)
    return ours


def tokens(*shape: int) -> Tensor:
    return torch.randint(1, START, shape, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("activation", ["swish", "relu", "gelu"])
def test_logits_are_theirs(activation: str) -> None:
    model = their_model(activation)
    ours = ours_of(model)
    source, target = tokens(3, 7), tokens(3, 5)
    target[:, 0] = START
    lengths = torch.tensor([7, 4, 6])
    mask = (torch.arange(7)[None] < lengths[:, None]).long()
    with torch.no_grad():
        expected = model(source, attention_mask=mask, decoder_input_ids=target).logits
        found = ours.logits(ours(source, target, lengths))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_folders_both_ways(tmp_path: Path) -> None:
    model = their_model()
    model.save_pretrained(tmp_path / "theirs")
    assert is_marian(tmp_path / "theirs")
    ours = read_marian_folder(tmp_path / "theirs")
    (tmp_path / "ours").mkdir()
    write_marian_model(tmp_path / "ours", ours, torch.float32)
    again = transformers.MarianMTModel.from_pretrained(tmp_path / "ours").eval()
    source, target = tokens(2, 6), tokens(2, 4)
    with torch.no_grad():
        expected = model(source, decoder_input_ids=target).logits
        found = again(source, decoder_input_ids=target).logits
        middle = ours.logits(ours(source, target))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(middle, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("width", "penalty"), [(1, 0.6), (4, 0.6), (3, 1.0)])
def test_beams_are_theirs(width: int, penalty: float) -> None:
    model = their_model()
    ours, source = ours_of(model), tokens(1, 6)
    source[0, -1] = END
    expected = model.generate(
        source,
        num_beams=width,
        length_penalty=penalty,
        max_new_tokens=9,
        do_sample=False,
        bad_words_ids=None,
    )[0, 1:]
    settings = BeamSettings(width, penalty, max_new_tokens=9)
    with torch.no_grad():
        (beams,) = beam_translate(ours, [source[0].tolist()], settings)
    written = [int(token) for token in expected if token != START]
    assert list(beams[0].tokens) == written


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scale_embedding": False}, "scale_embedding"),
        ({"normalize_before": True}, "normalize_before"),
        ({"decoder_vocab_size": 40}, "decoder_vocab_size"),
        ({"decoder_ffn_dim": 48}, "decoder_ffn_dim"),
        ({"activation_function": "tanh"}, "activation_function"),
        ({"model_type": "bart"}, "model_type"),
        ({"d_model": "wide"}, "wrong kind|must be"),
    ],
)
def test_what_is_refused(changes: dict[str, Any], said: str) -> None:
    model = their_model()
    with pytest.raises(UserError, match=said):
        from_marian(model.config.to_dict() | changes, model.state_dict())


def test_weights_that_do_not_fit() -> None:
    model = their_model()
    settings, state = model.config.to_dict(), dict(model.state_dict())
    missing = {k: v for k, v in state.items() if k != "model.encoder.layers.0.fc1.weight"}
    with pytest.raises(UserError, match=r"lack model\.encoder\.layers\.0\.fc1\.weight"):
        from_marian(settings, missing)
    with pytest.raises(UserError, match="without a place in ours: more"):
        from_marian(settings, state | {"more": torch.zeros(2)})
    other = {"lm_head.weight": state["lm_head.weight"] + 1}
    with pytest.raises(UserError, match=r"lm_head\.weight is not the shared embedding"):
        from_marian(settings, state | other)
    learnt = torch.randn(40, 16, generator=torch.Generator().manual_seed(1))
    with pytest.raises(UserError, match="not sinusoids"):
        from_marian(settings, state | {"model.encoder.embed_positions.weight": learnt})


def test_shapes_that_marian_has_not() -> None:
    config = EncoderDecoderConfig()
    small = EncoderDecoderConfig(config.model.__class__(1, 8, 2, 8, 10, norm_position="pre"))
    with pytest.raises(UserError, match="no encoder–decoder of this shape"):
        to_marian(small, EncoderDecoder(small).state_dict())
