"""vLLM as an engine, in front of a double of its server; tests/vllm asks the real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lmsmith.catalogue.remote import RemoteError
from lmsmith.core.errors import UserError
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import GenerationConfig
from lmsmith.generation import process_watch
from lmsmith.generation.engine import Engine, Request, SamplingSettings, answer, generate
from lmsmith.generation.scheduler import Event, Failed
from lmsmith.generation.vllm import VLLMModel, VLLMScheduler, open_vllm
from lmsmith.generation.vllm_server import require_vllm
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.tokenizers import Tokenizer
from tiny_models import TEXTS, random_decoder
from vllm_double import VLLMDouble, vllm_double

TOKENIZER = Tokenizer.train(TEXTS, 300)
SHAPE = ModelConfig(2, 16, 2, 48, TOKENIZER.vocabulary_size + 3)
"""Three rows of the embedding have no token."""

PROMPTS = [[0, 40, 41], [0, 50], [0, 60, 61, 62]]


@contextmanager
def opened(
    folder: Path, decoder: Decoder, server: VLLMDouble, **more: object
) -> Iterator[VLLMModel]:
    config = replace(GenerationConfig(engine="vllm", vllm_url=server.url), **more)  # type: ignore[arg-type]
    place = folder / "weights"
    with open_vllm(
        config, decoder, TOKENIZER, place, dtype="float32", progress=QuietProgress()
    ) as model:
        yield model
    assert not place.exists()


def test_tokens_come_as_they_were_drawn_and_every_setting_is_sent(tmp_path: Path) -> None:
    decoder = random_decoder(SHAPE)
    settings = SamplingSettings(12, seed=5, stop_tokens=(TOKENIZER.end_of_turn,), log_probs=True)
    with vllm_double() as server, opened(tmp_path, decoder, server) as model:
        requests = [Request(p, settings, stream=row) for row, p in enumerate(PROMPTS)]
        replies = [reply for (reply,) in answer(Engine(model, tokenizer=TOKENIZER), requests)]
        greedy = SamplingSettings(12, temperature=0)
        written = generate(model, PROMPTS, greedy, tokenizer=TOKENIZER)
    for prompt, reply in zip(PROMPTS, replies, strict=True):
        assert TOKENIZER.decode(reply.tokens).startswith(reply.text)
        forced = replace(settings, temperature=1.0)
        allowed = replace(forced, logit_bias=dict.fromkeys(range(300, 303), -100.0))
        asked = Request(prompt, allowed, forced=(tuple(reply.tokens),))
        ((known,),) = answer(Engine(decoder), [asked])
        ours = [each.log_prob for each in known.log_probs]
        assert [each.log_prob for each in reply.log_probs] == pytest.approx(ours, abs=1e-5)
    assert written == generate(decoder, PROMPTS, greedy, tokenizer=TOKENIZER)
    assert {tuple(body["prompt"]) for body in server.bodies[:3]} == set(map(tuple, PROMPTS))
    assert len({body["seed"] for body in server.bodies[:3]}) == 3
    wanted = {
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0, "ignore_eos": True, "max_tokens": 12,
        "stop_token_ids": [TOKENIZER.end_of_turn], "return_token_ids": True,
        "logit_bias": {"300": -100.0, "301": -100.0, "302": -100.0},
    }  # fmt: skip
    assert wanted.items() <= server.bodies[0].items()


def test_weights_are_exchanged_counted_and_the_prefix_cache_forgotten(tmp_path: Path) -> None:
    one, other = random_decoder(SHAPE), random_decoder(SHAPE, seed=1)

    def written(model: VLLMModel | Decoder) -> list[list[int]]:
        settings = SamplingSettings(8, temperature=0)
        return generate(model, PROMPTS, settings, tokenizer=TOKENIZER)

    with vllm_double() as server, opened(tmp_path, one, server) as model:
        assert model.version == 1
        for version, decoder in enumerate((other, one, other), start=2):
            assert model.bring(decoder) == version
            assert written(model) == written(decoder)
        exchanges = [path for path in server.calls if path != "/v1/completions"]
        assert exchanges == ["/collective_rpc", "/reset_prefix_cache"] * 4
        server.resets = False
        with pytest.raises(UserError, match="kept rows of the weights before"):
            model.bring(one)
        with pytest.raises(UserError, match="another shape"):
            model.bring(random_decoder(replace(SHAPE, layers=1)))


def test_what_vllm_cannot_do_is_refused(tmp_path: Path) -> None:
    decoder = random_decoder(SHAPE)
    with vllm_double() as server, opened(tmp_path, decoder, server) as model:
        for request in (
            Request([1], SamplingSettings(2, prompt_log_probs=True)),
            Request([1], SamplingSettings(2, log_probs=True), forced=((3,),)),
        ):
            with pytest.raises(UserError, match="vLLM is asked for none"):
                Engine(model).submit(request)
        with pytest.raises(UserError, match="leaves no room"):
            generate(model, [[1] * 48], SamplingSettings(2))
    post = random_decoder(replace(SHAPE, norm_position="post", activation="gelu"))
    with (
        vllm_double() as server,
        pytest.raises(UserError, match="has no model of this shape"),
        opened(tmp_path, post, server),
    ):
        pass


def test_stop_texts_end_a_reply(tmp_path: Path) -> None:
    decoder = random_decoder(SHAPE, seed=2)
    settings = SamplingSettings(30, temperature=0, stop_tokens=(TOKENIZER.end_of_turn,))
    with vllm_double() as server, opened(tmp_path, decoder, server) as model:
        ((whole,),) = answer(Engine(model, tokenizer=TOKENIZER), [Request(PROMPTS[0], settings)])
        stop = whole.text[4:6]
        cut = replace(settings, stop=(stop,))
        ((reply,),) = answer(Engine(model, tokenizer=TOKENIZER), [Request(PROMPTS[0], cut)])
    assert server.bodies[-1]["stop"] == [stop]
    assert (reply.text, reply.finish) == (whole.text[: whole.text.index(stop)], "stop")


@pytest.mark.parametrize(
    ("tokens", "ends", "problem"),
    [
        (0, "abort", "did not finish a reply .finish_reason: abort"),
        (2, "abort", "did not finish a reply .finish_reason: abort"),
        (2, "error", "did not finish a reply .finish_reason: error"),
        (0, "stop", "has no tokens"),
    ],
)
def test_a_reply_that_vllm_gave_up_ends_the_run(
    tmp_path: Path, tokens: int, ends: str, problem: str
) -> None:
    decoder = random_decoder(SHAPE)
    with vllm_double() as server, opened(tmp_path, decoder, server) as model:
        server.tokens, server.ends = 2, "length"
        ((reply,),) = answer(Engine(model), [Request(PROMPTS[0], SamplingSettings(12))])
        assert (len(reply.tokens), reply.finish) == (2, "length")
        server.tokens, server.ends = tokens, ends
        scheduler = VLLMScheduler(model, TOKENIZER)
        scheduler.submit(Request(PROMPTS[0], SamplingSettings(12, log_probs=True)))
        events, until = list[Event](), time.monotonic() + 20
        while scheduler.busy and time.monotonic() < until:
            events += scheduler.step()
            time.sleep(0.01)
        assert not scheduler.busy
        *_, last = events
        assert isinstance(last, Failed)
        with pytest.raises(RemoteError, match=problem):
            raise last.error


def test_what_is_missing_is_named_with_its_fix(tmp_path: Path) -> None:
    def refused(**settings: str) -> str:
        with pytest.raises(UserError) as raised:
            require_vllm(GenerationConfig(engine="vllm", **settings))  # type: ignore[arg-type]
        return str(raised.value)

    nowhere, fix = str(tmp_path / "python"), "generation.vllm_python=.venv-vllm/bin/python"
    assert f"{nowhere}: no such program" in (said := refused(vllm_python=nowhere))
    assert fix in said
    assert "has no vLLM" in (said := refused(vllm_python=sys.executable))
    assert fix in said
    for url in ("127.0.0.1:8000", "http://[x", "http://h:port"):
        assert "no address of a server" in refused(vllm_url=url)
    with vllm_double() as server:
        server.logprobs_mode = "raw_logprobs"
        assert "--logprobs-mode processed_logprobs" in refused(vllm_url=server.url)
        server.has_calls = False
        assert "VLLM_SERVER_DEV_MODE=1" in refused(vllm_url=f"{server.url}/v1/")
    assert "start that server first" in refused(vllm_url=server.url)


def test_a_server_that_ends_at_its_start_says_why(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\necho "ValueError: no memory"; exit 3\n')
    python.chmod(0o755)
    config = GenerationConfig(engine="vllm", vllm_python=str(python))
    place = tmp_path / "weights"
    with pytest.raises(UserError, match=r"ended at its start.*ValueError: no memory") as raised:  # noqa: SIM117
        with open_vllm(
            config, random_decoder(SHAPE), TOKENIZER, place, dtype="float32",
            progress=QuietProgress(),
        ):  # fmt: skip
            pass
    assert str(place / "vllm.log") in str(raised.value)
    assert (place / "base" / "model.safetensors").is_file()


def test_a_server_is_none_of_the_processes_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its replicas, which meet by TCP, would wait for torchrun's store."""
    given = ("TORCHELASTIC_USE_AGENT_STORE", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE")
    for name in (*given, "LMSMITH_TEST"):
        monkeypatch.setenv(name, "1")
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\nenv; exit 3\n')
    python.chmod(0o755)
    config = GenerationConfig(engine="vllm", vllm_python=str(python))
    with pytest.raises(UserError, match="ended at its start"):  # noqa: SIM117
        with open_vllm(
            config, random_decoder(SHAPE), TOKENIZER, tmp_path / "weights", dtype="float32",
            progress=QuietProgress(),
        ):  # fmt: skip
            pass
    found = (tmp_path / "weights" / "vllm.log").read_text().splitlines()
    assert "LMSMITH_TEST=1" in found
    assert not {f"{name}=1" for name in given} & set(found)


PARENT = """
import subprocess, sys, time
words = [sys.executable, sys.argv[1], sys.executable, "-c", sys.argv[2]]
child = subprocess.Popen(words, stdin=subprocess.PIPE)
time.sleep(60)
"""
CHILD = """
import os, pathlib, sys, time
path = pathlib.Path({path!r})
path.with_suffix(".part").write_text(str(os.getpid()))
path.with_suffix(".part").rename(path)
time.sleep(60)
"""


def test_a_killed_run_leaves_no_server(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    words = [sys.executable, "-c", PARENT, process_watch.__file__, CHILD.format(path=str(path))]
    parent = subprocess.Popen(words)
    pid = int(waited(path))
    assert is_alive(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    until = time.monotonic() + 10
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not is_alive(pid)


def waited(path: Path) -> str:
    until = time.monotonic() + 20
    while not path.exists() and time.monotonic() < until:
        time.sleep(0.02)
    return path.read_text()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_the_unembedding_goes_by_itself(tmp_path: Path) -> None:
    """vLLM's build for processors keeps the old one otherwise."""
    decoder = random_decoder(SHAPE)
    with vllm_double() as server, opened(tmp_path, decoder, server):
        assert server.decoder is not None
        state = server.decoder.state_dict()
        assert torch.equal(state["unembedding.weight"], decoder.token_embedding.weight)
