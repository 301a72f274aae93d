"""Beams are transformers' beams."""

from __future__ import annotations

import itertools
import os

import pytest
import torch

from lmsmith.core.errors import UserError
from lmsmith.generation.beam import BeamSettings, beam_search
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.interop.transformers import from_transformers

os.environ.setdefault("HF_HUB_OFFLINE", "1")

STOPS = (2, 5, 9)


def tiny_decoder(seed: int) -> Decoder:
    decoder = Decoder(ModelConfig(1, 16, 2, context=20, vocabulary_size=5)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(0, 0.6, generator=generator)
    return decoder


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(("width", "penalty"), [(4, 0.6), (3, 1.0), (5, 0.0), (2, 2.0)])
def test_equal_to_transformers(kind: str, width: int, penalty: float) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(100 * width)
    if kind == "gpt2":
        shape = transformers.GPT2Config(
            vocab_size=31, n_positions=60, n_embd=32, n_layer=2, n_head=2,
            bos_token_id=0, eos_token_id=STOPS[0],
        )  # fmt: skip
        peer = transformers.GPT2LMHeadModel(shape)
    else:
        shape = transformers.LlamaConfig(
            vocab_size=31, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=60,
            bos_token_id=0, eos_token_id=STOPS[0], pad_token_id=0,
        )  # fmt: skip
        peer = transformers.LlamaForCausalLM(shape)
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.35)
    peer.eval()
    config, state = from_transformers(shape.to_dict(), peer.state_dict())
    decoder = Decoder(config).eval()
    decoder.load_state_dict(state)
    settings = BeamSettings(width, penalty, max_new_tokens=14, stop_tokens=STOPS)
    ended = 0
    for _ in range(4):
        prompt = torch.randint(10, 31, (1, int(torch.randint(1, 9, ()))))
        theirs = peer.generate(
            prompt, attention_mask=torch.ones_like(prompt), num_beams=width,
            num_return_sequences=width, length_penalty=penalty, early_stopping=False,
            do_sample=False, max_new_tokens=14, eos_token_id=list(STOPS), pad_token_id=0,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        ours = beam_search(decoder, prompt[0].tolist(), settings)
        assert len(ours) == width
        for beam, row, score in zip(
            ours, theirs.sequences[:, prompt.shape[1] :].tolist(), theirs.sequences_scores,
            strict=True,
        ):  # fmt: skip
            end = next((i for i, token in enumerate(row) if token in STOPS), len(row))
            text = row[: end + 1]
            assert list(beam.tokens) == text[: len(beam.tokens)]
            assert not any(text[len(beam.tokens) :])
            assert beam.score == pytest.approx(float(score), abs=1e-4)
            ended += beam.tokens[-1] in STOPS
    assert ended


def test_as_wide_as_all_texts_it_finds_the_best_of_them() -> None:
    decoder = tiny_decoder(3)
    settings = BeamSettings(125, 0.0, max_new_tokens=3)
    found = beam_search(decoder, [1, 4], settings)
    texts = list(itertools.product(range(5), repeat=3))
    with torch.no_grad():
        tokens = torch.tensor([[1, 4, *text] for text in texts])
        log_probs = decoder.logits(decoder(tokens))[:, 1:-1].log_softmax(-1)
    scores = log_probs.gather(2, tokens[:, 2:, None]).sum(dim=(1, 2))
    order = scores.argsort(descending=True).tolist()
    assert [beam.tokens for beam in found[:20]] == [texts[place] for place in order[:20]]


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UserError, match="width = 0"):
        beam_search(tiny_decoder(0), [1], BeamSettings(0))
    with pytest.raises(UserError, match="the prompt is empty"):
        beam_search(tiny_decoder(0), [], BeamSettings())
