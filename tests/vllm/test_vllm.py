"""The real vLLM beside our own engine: tokens, weights, adapters, PPO, the server's end."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from served_kinds import ADAPTER, PROMPTS, TOKENIZER, Kind, assert_equal, replies_of
from torch import Tensor

from lmsmith.catalogue.remote import Call
from lmsmith.core.recipe import GenerationConfig, MachineConfig
from lmsmith.generation.engine import Engine, Request, SamplingSettings, answer, generate
from lmsmith.generation.vllm import VLLMModel, open_vllm
from lmsmith.models.adapters import adapt
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.prompts import encode_prompt
from lmsmith.rlhf.ppo import PPOConfig, PPOTrainer
from lmsmith.training.machine import resolve_machine
from lmsmith.training.optimiser import OptimiserConfig

pytestmark = pytest.mark.vllm


def test_exported_models_write_the_same_tokens(kind: Kind) -> None:
    kind.model.bring(kind.decoder)
    assert assert_equal(kind.model, kind.decoder) > 200


def test_new_weights_change_every_reply_and_the_cache_forgets_the_old(kind: Kind) -> None:
    before = kind.model.version
    written = []
    for seed in (5, 6):
        decoder = kind.brought(seed)
        assert assert_equal(kind.model, decoder) > 200
        written.append([[token for token, *_ in reply] for reply in replies_of(kind.model)])
    assert kind.model.version == before + 2
    assert all(one != other for one, other in zip(*written, strict=True))


def test_adapters_are_exchanged(kind: Kind) -> None:
    """By LoRA for Llama's kind, merged for GPT-2's."""
    kind.model.bring(kind.decoder)
    adapted = copy.deepcopy(kind.decoder)
    adapt(adapted, ADAPTER, torch.float32, seed=1)
    chance = torch.Generator().manual_seed(3)
    base = replies_of(kind.model)
    for _ in range(2):
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if name.endswith(".up"):
                    parameter.normal_(0, 0.3, generator=chance)
        kind.model.bring(adapted)
        assert kind.model.name == ("adapter" if kind.name == "llama" else kind.model.server.model)
        assert assert_equal(kind.model, adapted) > 200
        assert replies_of(kind.model) != base
    kind.model.bring(kind.decoder)
    assert [[t for t, *_ in r] for r in replies_of(kind.model)] == [
        [t for t, *_ in r] for r in base
    ]


def test_drawn_tokens_have_the_distribution_of_their_log_probs(kind: Kind) -> None:
    """At temperature 1.3, over 2,000 first tokens: the mean surprise is the entropy."""
    kind.model.bring(kind.decoder)
    settings = SamplingSettings(1, temperature=1.3, log_probs=True, seed=11)
    requests = [Request([0, 40], settings, stream=row) for row in range(2000)]
    found = [reply.log_probs[0] for (reply,) in answer(Engine(kind.model), requests)]
    with torch.no_grad():
        hidden = kind.decoder(torch.tensor([[0, 40]]))
        log_probs_v = (kind.decoder.logits(hidden[0, -1]) / 1.3).log_softmax(-1)
    for each in found[:50]:
        assert each.log_prob == pytest.approx(float(log_probs_v[each.token]), abs=1e-4)
    entropy = -float((log_probs_v.exp() * log_probs_v).sum())
    spread = float((log_probs_v.exp() * (log_probs_v + entropy) ** 2).sum()) ** 0.5
    surprise = -sum(each.log_prob for each in found) / len(found)
    assert abs(surprise - entropy) < 4 * spread / len(found) ** 0.5
    assert len({each.token for each in found}) > 30


def test_the_chat_template_and_the_stop_tokens_are_ours(kind: Kind) -> None:
    kind.model.bring(kind.decoder)
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "What is the colour of the sky?"},
    ]
    ours = encode_prompt(TOKENIZER, messages).tokens
    body = {"model": kind.model.server.model, "messages": messages, "add_generation_prompt": True}
    assert Call(kind.model.server, "/tokenize", body).result()["tokens"] == ours
    end = TOKENIZER.end_of_turn
    settings = SamplingSettings(40, temperature=1.0, stop_tokens=(end,), seed=3)
    replies = generate(kind.model, PROMPTS * 20, settings)
    assert any(reply[-1] == end for reply in replies)
    assert all(end not in reply[:-1] for reply in replies)
    assert all(reply[-1] == end or len(reply) == 40 for reply in replies)


STEPS = OptimiserConfig(learning_rate=0.003, weight_decay=0.0, epsilon=1e-5)
PPO = PPOConfig(
    iterations=8, rollouts=64, minibatch=32, ppo_epochs=2, ptx_coefficient=0.0, max_new_tokens=8,
    missing_eos_penalty=0.1, kl_budget=0.0, optimiser=STEPS, value_optimiser=STEPS,
)  # fmt: skip


def share_of_high(prompts: list[list[int]], responses: list[list[int]]) -> Tensor:
    """The rule: which part of a response are tokens above 150, half of all."""
    return torch.tensor([sum(t > 150 for t in each) / len(each) for each in responses])


def last_scores(engine: VLLMModel | None, reference: Decoder, seed: int) -> tuple[float, float]:
    """First and last mean reward of a run, and its gaps are small."""
    value_model = ScalarModel(copy.deepcopy(reference))
    value_model.initialise_head(torch.Generator().manual_seed(0))
    trainer = PPOTrainer(
        copy.deepcopy(reference), value_model, reference, share_of_high, [[0, 40], [0, 50, 51]],
        stop_token=TOKENIZER.end_of_turn, config=PPO, seed=seed, engine=engine,
        machine=resolve_machine(MachineConfig(precision="fp32")),
    )  # fmt: skip
    rows = trainer.fit()
    if engine is not None:
        assert all(row["rollout/logprob_gap"] < 1e-4 for row in rows)
        versions = [row["rollout/weights_version"] for row in rows]
        assert versions == list(range(int(versions[0]), int(versions[0]) + PPO.iterations))
    return rows[0]["objective/scores"], rows[-1]["objective/scores"]


def test_ppo_reaches_the_same_reward_as_through_our_engine(kinds: dict[str, Kind]) -> None:
    """Means over three seeds; their difference is below what the seeds differ by."""
    kind = kinds["gpt2"]
    reference = Decoder(kind.decoder.config).eval()
    reference.initialise(torch.Generator().manual_seed(2))
    ours = [last_scores(None, reference, seed) for seed in range(3)]
    theirs = [last_scores(kind.model, reference, seed) for seed in range(3)]
    print(f"reward, first and last: ours {ours}, vLLM's {theirs}")
    own, other = (sum(last for _, last in each) / 3 for each in (ours, theirs))
    first = sum(begin for begin, _ in ours) / 3
    assert own > first + 0.15
    assert abs(other - own) < max(0.06, 0.25 * (own - first))


def test_a_server_that_runs_already_is_taken(kinds: dict[str, Kind], tmp_path: Path) -> None:
    kind = kinds["gpt2"]
    config = GenerationConfig(engine="vllm", vllm_url=f"{kind.url}/v1", vllm_requests=16)
    other = Decoder(kind.decoder.config).eval()
    other.initialise(torch.Generator().manual_seed(9))
    with open_vllm(
        config, other, TOKENIZER, tmp_path / "weights", dtype="float32",
        progress=None,  # type: ignore[arg-type]
    ) as model:  # fmt: skip
        assert model.version == 1
        assert assert_equal(model, other) > 100


RUN = """
import sys
from pathlib import Path
from served_kinds import SETTINGS, SHAPES, TOKENIZER
from lmsmith.core.progress import QuietProgress
from lmsmith.generation.vllm import open_vllm
from tiny_models import random_decoder
with open_vllm(SETTINGS, random_decoder(SHAPES["gpt2"]), TOKENIZER, Path(sys.argv[1]),
               dtype="float32", progress=QuietProgress()) as model:
    print(model.server.url, flush=True)
    sys.stdin.read()
"""


def test_a_killed_run_leaves_no_process_of_vllms(tmp_path: Path) -> None:
    folder = tmp_path / "vllm"
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    run = subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip
    assert run.stdout is not None
    assert run.stdin is not None
    assert run.stdout.readline().startswith(b"http://127.0.0.1:")
    assert len(processes_of(folder)) >= 1
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdin.close()
    run.stdout.close()
    until = time.monotonic() + 20
    while processes_of(folder) and time.monotonic() < until:
        time.sleep(0.2)
    assert processes_of(folder) == []


def processes_of(folder: Path) -> list[int]:
    """Programs that hold the log of that folder open: the server and its workers."""
    log, found = (folder / "vllm.log").resolve(), []
    for place in Path("/proc").iterdir():
        if not place.name.isdecimal() or int(place.name) == os.getpid():
            continue
        try:
            if any(file.readlink() == log for file in (place / "fd").iterdir()):
                found.append(int(place.name))
        except OSError:
            continue
    return found
