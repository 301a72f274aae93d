"""Log-probabilities of the engine, of beams and of speculation are log-softmax of raw logits.

float32 throughout: within 1e-4 of float64's of another implementation's logits.
"""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import Tensor

from lmsmith.core.recipe import MachineConfig
from lmsmith.generation import log_probs as module
from lmsmith.generation.beam import BeamSettings, beam_search
from lmsmith.generation.engine import Engine, Request, answer, stream
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.log_probs import token_log_probs
from lmsmith.generation.requests import Reply, TokenLogProb
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.speculative import DraftModel, PromptLookup
from lmsmith.generation.vocabulary import Vocabulary
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.interop.transformers import from_transformers
from lmsmith.training.machine import resolve_machine

os.environ.setdefault("HF_HUB_OFFLINE", "1")

TOLERANCE = 1e-4
VOCABULARY = 53
CHANGED = {
    "temperature": 0.6,
    "top_k": 9,
    "top_p": 0.8,
    "repetition_penalty": 1.3,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.2,
    "logit_bias": {3: 2.0, 7: -math.inf},
}
"""What changes the tokens that are drawn, and no log-probability."""


def make_decoder(seed: int, layers: int = 2) -> Decoder:
    decoder = Decoder(ModelConfig(layers, 32, 4, context=70, vocabulary_size=VOCABULARY)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            parameter.normal_(centre, 0.3, generator=generator)
    return decoder


DECODER = make_decoder(0)


def exact(decoder: Decoder, tokens: list[int]) -> Tensor:
    """After each token, by a whole forward pass: float64 (t, vocabulary)."""
    with torch.no_grad():
        return decoder.logits(decoder(torch.tensor([tokens])))[0].double().log_softmax(-1)


def check(found: list[TokenLogProb], tokens: list[int], log_probs_tv: Tensor, top: int) -> None:
    """``found`` are of these tokens, drawn from these distributions."""
    assert [each.token for each in found] == tokens
    for each, log_probs_v in zip(found, log_probs_tv, strict=True):
        assert each.log_prob == pytest.approx(float(log_probs_v[each.token]), abs=TOLERANCE)
        best = log_probs_v.topk(top)
        assert [value for _, value in each.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        for token, value in each.top:
            assert value == pytest.approx(float(log_probs_v[token]), abs=TOLERANCE)
        assert len({token for token, _ in each.top}) == top


def check_reply(reply: Reply, prompt: list[int], decoder: Decoder, top: int) -> None:
    log_probs_tv = exact(decoder, prompt + reply.tokens)
    check(reply.log_probs, reply.tokens, log_probs_tv[len(prompt) - 1 : -1], top)
    if reply.prompt_log_probs:
        check(list(reply.prompt_log_probs), prompt[1:], log_probs_tv[: len(prompt) - 1], top)


def test_equal_to_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    shape = transformers.LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=60,
    )  # fmt: skip
    peer = transformers.LlamaForCausalLM(shape).eval()
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3)
    config, state = from_transformers(shape.to_dict(), peer.state_dict())
    decoder = Decoder(config).eval()
    decoder.load_state_dict(state)
    settings = SamplingSettings(
        12, temperature=1.3, top_p=0.7, seed=3, top_log_probs=6, prompt_log_probs=True
    )
    prompt = torch.randint(61, (9,)).tolist()
    reply = answer(Engine(decoder), [Request(prompt, settings)])[0][0]
    tokens = prompt + reply.tokens
    with torch.no_grad():
        log_probs_tv = peer(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    found = [*reply.prompt_log_probs, *reply.log_probs]
    check(found, tokens[1:], log_probs_tv[:-1], 6)


def test_ragged_requests_samples_and_changed_logits() -> None:
    """Each request's own: prompts of many lengths, some asking, settings that change what comes."""
    engine = Engine(DECODER, rows=6)
    requests = [
        Request(
            torch.randint(VOCABULARY, (length,)).tolist(),
            SamplingSettings(
                int(torch.randint(1, 15, ())),
                seed=length,
                samples=samples,
                log_probs=True,
                top_log_probs=top,
                prompt_log_probs=length % 2 == 1,
                **(CHANGED if length > 9 else {}),
            ),
        )
        for length, samples, top in ((1, 1, 0), (3, 3, 2), (40, 1, 5), (17, 4, 1), (8, 2, 53))
    ]
    plain = Request([1, 2, 3], SamplingSettings(9))
    replies = answer(engine, [*requests, plain])
    for request, found in zip(requests, replies, strict=False):
        assert len(found) == request.settings.samples
        for reply in found:
            assert bool(reply.prompt_log_probs) == (request.settings.prompt_log_probs and
                                                    len(request.prompt) > 1)  # fmt: skip
            check_reply(reply, list(request.prompt), DECODER, request.settings.top_log_probs)
    assert replies[-1][0].log_probs == []
    assert replies[-1][0].prompt_log_probs == ()


def test_a_prompt_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOGITS_AT_ONCE", 7)
    settings = SamplingSettings(3, log_probs=True, top_log_probs=4, prompt_log_probs=True)
    for length in (1, 7, 8, 9, 30):
        prompt = torch.randint(VOCABULARY, (length,)).tolist()
        check_reply(answer(Engine(DECODER), [Request(prompt, settings)])[0][0], prompt, DECODER, 4)


def test_without_being_asked_no_logits_but_the_last_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows: list[int] = []
    logits = InferenceDecoder.logits

    def counted(self: InferenceDecoder, hidden_nd: Tensor) -> Tensor:
        rows.append(len(hidden_nd))
        return logits(self, hidden_nd)

    def never(*args: object) -> list[TokenLogProb]:
        raise AssertionError("log-probabilities were made")

    monkeypatch.setattr(InferenceDecoder, "logits", counted)
    monkeypatch.setattr("lmsmith.generation.log_probs.token_log_probs", never)
    monkeypatch.setattr("lmsmith.generation.scheduler.prompt_log_probs", never)
    answer(Engine(DECODER), [Request([5] * 30, SamplingSettings(4, seed=1))] * 2)
    assert rows == [2, 2, 2, 2]


def test_in_bf16_the_logits_are_not_rounded() -> None:
    """A reply's own log-probability and that of the same token among the likeliest are one."""
    model = InferenceDecoder(DECODER, resolve_machine(MachineConfig(precision="bf16")))
    if type(model.kernels).__name__ != "NativeKernels":
        pytest.skip("PyTorch's own product rounds them")
    cache = model.new_cache(1, 8)
    logits_nv = model.logits(model.read([(cache.open(), [1, 2, 3])], cache))
    assert not torch.equal(logits_nv, logits_nv.bfloat16().float())


@pytest.mark.parametrize("kind", ["lookup", "draft"])
def test_speculation_gives_the_targets(kind: str) -> None:
    settings = SamplingSettings(
        25, seed=4, log_probs=True, top_log_probs=3, prompt_log_probs=True, **CHANGED
    )
    prompt = [5, 6, 7, 5, 6]
    small = make_decoder(9, layers=1)
    drafter = PromptLookup() if kind == "lookup" else DraftModel(InferenceDecoder(small))
    reply = answer(Engine(DECODER, drafter=drafter), [Request(prompt, settings)])[0][0]
    assert (len(reply.tokens), reply.finish) == (25, "length")
    assert len(reply.prompt_log_probs) == 4
    check_reply(reply, prompt, DECODER, 3)


def test_beams_give_those_of_their_tokens() -> None:
    prompt = [4, 9, 11]
    beams = beam_search(DECODER, prompt, BeamSettings(5, 0.6, 9, stop_tokens=(2, 8)))
    for beam in beams:
        tokens = list(beam.tokens)
        log_probs_tv = exact(DECODER, prompt + tokens)[2:-1]
        expected = log_probs_tv.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
        assert list(beam.log_probs) == pytest.approx(expected, abs=TOLERANCE)
        assert beam.score == pytest.approx(sum(expected) / len(tokens) ** 0.6, abs=TOLERANCE)


def test_closed_form() -> None:
    """Logits log 1, log 2, log 5 give 1/8, 2/8, 5/8, whatever is added to all of them."""
    logits = torch.log(torch.tensor([[1.0, 2.0, 5.0], [5.0, 1.0, 2.0]])) + torch.tensor(
        [[9.0], [-4.0]]
    )
    first, second = token_log_probs(logits, [1, 2], [2, 0], Vocabulary(None, 3))
    assert math.exp(first.log_prob) == pytest.approx(2 / 8, rel=1e-5)
    assert [token for token, _ in first.top] == [2, 1]
    assert [math.exp(p) for _, p in first.top] == pytest.approx([5 / 8, 2 / 8], rel=1e-5)
    assert (second.token, second.top) == (2, ())
    assert math.exp(second.log_prob) == pytest.approx(2 / 8, rel=1e-5)


def test_asking_changes_no_token() -> None:
    settings = SamplingSettings(20, seed=8)
    asking = SamplingSettings(20, seed=8, log_probs=True, top_log_probs=9, prompt_log_probs=True)
    reply = answer(Engine(DECODER), [Request([1, 2, 3], asking)])[0][0]
    assert reply.tokens == list(stream(DECODER, [1, 2, 3], settings))
