"""A program that trains tiny stages in 1, 2 and 4 processes; ``run_together.py FOLDER``.

It forks, so that PyTorch is imported once. ``FOLDER/N/STAGE/metrics.jsonl`` are what N processes
made, ``FOLDER/sharded/STAGE`` what two made that held half a model each, and
``FOLDER/resumed-N/pretrain`` what two such began and N ended. ``FOLDER/divided-N`` are rankings and
an evaluation of which N processes did parts, with a file ``FUNCTION-by-STAGE-RANK`` for each that
called it; ``FOLDER/by-server-N`` is the evaluation with the replies of a server of vLLM's kind.
``FOLDER/bf16-1`` and ``FOLDER/bf16-sharded`` are shorter, with bf16 products, of one process and of
two that held half a model each; ``FOLDER/kept.json`` is what such two keep of the weights.
``FOLDER/stopped`` is what two made of which one got a signal a step later than the other, with
``RANK.json``; ``FOLDER/left.json`` is what a process said that waited for one that ended.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import test_evaluate
import test_rankings
import torch
import torch.distributed as dist
from forks import in_processes, stopping_at
from preference_world import (
    conversations,
    ending_decoder,
    make_tokenizer,
    write_data,
    write_models,
)
from test_adapters import rankings
from test_pretrain import documents
from torch.autograd.graph import saved_tensors_hooks

from lmsmith.core.errors import Interrupted
from lmsmith.core.files import write_json
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import GenerationConfig, MachineConfig
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf.ppo import PPOConfig
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages import evaluate, ppo, pretrain, reward, sft
from lmsmith.stages import rankings as ranking
from lmsmith.training import parallel
from lmsmith.training.machine import resolve_machine
from lmsmith.training.optimiser import OptimiserConfig
from lmsmith.training.sharding import divided as in_parts
from loopback import free_port
from vllm_double import vllm_double

TOKENIZER = make_tokenizer()
ADAMW = OptimiserConfig(learning_rate=1e-3, weight_decay=0.01)
PRETRAIN = pretrain.PretrainConfig(
    model=ModelConfig(2, 16, 2, 32),
    tokens=50 * 224,
    batch_tokens=224,  # 7 rows: no equal shares for 2 or 4
    micro_batch_size=2,
    optimiser=OptimiserConfig(name="muon", learning_rate=1e-3, matrix_learning_rate=1e-3),
    warmup_steps=5,
    validations=2,
    validation_documents=5,
)
SFT = sft.SFTConfig(epochs=4.5, batch_tokens=256, min_steps=0, optimiser=ADAMW, validations=2)
REWARD = reward.RewardConfig(
    epochs=2, batch_prompts=3, min_steps=0, optimiser=ADAMW, validations=2, fit_head=True
)
PPO = PPOConfig(
    iterations=25,
    rollouts=10,
    minibatch=5,
    kl_control="adaptive",
    kl_target=0.1,
    kl_horizon=100,
    ptx_rows=3,
    max_new_tokens=6,
    max_prompt_tokens=40,
    snapshots=0,
    optimiser=ADAMW,
    value_optimiser=ADAMW,
)


@dataclass(frozen=True)
class World:
    """Inputs that all runs share, and where one run writes."""

    inputs: Path
    out: Path
    sharding: str = "off"
    precision: str = "fp32"
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def stage(self, name: str, module: Any, config: Any, **roles: str) -> None:
        """Run a stage as the pipeline does in each process."""
        machine = MachineConfig(
            precision=self.precision,  # type: ignore[arg-type]
            compile="off",
            threads=1,
            checkpoint_seconds=1e9,
            sharding=self.sharding,  # type: ignore[arg-type]
        )
        folder = StageFolder(
            self.out / name, 7, machine, QuietProgress(), generation=self.generation
        )
        folder.path.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(7)
        places = {role: self.inputs / place for role, place in roles.items()}
        with contextlib.suppress(parallel.Parted), parallel.together():
            metrics = module.run(config, places, folder)
            write_json(folder / "returned.json", metrics)

    def pretrain(self, config: pretrain.PretrainConfig = PRETRAIN) -> None:
        self.stage("pretrain", pretrain, config, data="data", tokenizer="tokenizer")

    def bf16_stages(self) -> None:
        """Few steps of the three ways to train; fine-tuning's is that of pretraining."""
        self.pretrain(replace(PRETRAIN, tokens=20 * PRETRAIN.batch_tokens))
        self.stage("reward", reward, replace(REWARD, epochs=1), rankings="ranked", base="base")
        roles = {"policy": "base", "reward": "scores", "pretrain": "shards"}
        self.stage("ppo", ppo, replace(PPO, iterations=5), data="data", **roles)

    def all_stages(self) -> None:
        self.pretrain()
        self.stage("sft", sft, SFT, data="data", base="base")
        self.stage("reward", reward, REWARD, rankings="ranked", base="base")
        roles = {"policy": "base", "reward": "scores", "pretrain": "shards"}
        self.stage("ppo", ppo, PPO, data="data", **roles)


def divided(folder: Path, count: int) -> None:
    """Candidates and an evaluation, each made by ``count`` processes."""
    ranking.PROMPTS_AT_ONCE = 8
    for name, module, tests in (
        ("rankings", ranking, test_rankings),
        ("evaluate", evaluate, test_evaluate),
    ):
        inputs, out = folder / f"{name}-inputs", folder / f"divided-{count}"
        if not inputs.exists():
            tests.make_inputs(inputs)
        roles = {each.name: each.name for each in inputs.iterdir()}

        world = World(inputs, out)
        work = partial(note_and_run, world, name, module, tests.CONFIG, roles)

        in_processes(count, folder / f"store-{name}-{count}", work)


def by_server(folder: Path, count: int) -> None:
    """An evaluation whose replies a server of vLLM's kind writes."""
    inputs, out = folder / "evaluate-inputs", folder / f"by-server-{count}"
    roles = {each.name: each.name for each in inputs.iterdir()}
    with vllm_double() as server:
        world = World(inputs, out, generation=GenerationConfig("vllm", vllm_url=server.url))
        config = test_evaluate.CONFIG
        names = ("generate", "predict_replies")
        work = partial(note_and_run, world, "evaluate", evaluate, config, roles, names)
        in_processes(count, folder / f"store-by-server-{count}", work)


def note_and_run(
    world: World,
    name: str,
    module: Any,
    config: Any,
    roles: dict[str, str],
    noted: Sequence[str] = ("generate",),
) -> None:
    with contextlib.ExitStack() as noting_all:
        for each in noted:
            noting_all.enter_context(noting(module, each, world.out))
        world.stage(name, module, config, **roles)


@contextlib.contextmanager
def noting(module: Any, name: str, folder: Path) -> Iterator[None]:
    """Inside, each process that calls a function of the module leaves a file in ``folder``."""
    real = getattr(module, name)

    def called(*given: Any, **options: Any) -> Any:
        folder.mkdir(exist_ok=True, parents=True)
        rank = parallel._group.rank if parallel._group else 0
        (folder / f"{name}-by-{module.__name__}-{rank}").touch()
        return real(*given, **options)

    setattr(module, name, called)
    try:
        yield
    finally:
        setattr(module, name, real)


def prepare(folder: Path) -> None:
    """The inputs of all stages, below ``folder``."""
    data = write_data(
        folder / "data",
        documents=documents(40, 1),
        validation_documents=documents(7, 2),
        demonstrations=conversations(60, 4, "a"),
        validation=conversations(5, 5, "b"),
        prompts=conversations(12, 6, "c"),
    )
    write_json(data / "mixture.json", {"books": 2.0})
    TOKENIZER.save(folder / "tokenizer")
    thumbs = [
        {"prompt": row["prompt"], "response": row["responses"][1], "liked": n % 2 == 0}  # type: ignore[index]
        for n, row in enumerate(rankings(60, 9))
    ]
    splits = {"train": rankings(75, 5), "validation": rankings(9, 6), "thumbs": thumbs}
    write_data(folder / "ranked", **splits)
    base = ending_decoder(TOKENIZER, context=64)
    write_models(folder, TOKENIZER, base=base)
    scores = ScalarModel(base)
    scores.initialise_head(torch.Generator().manual_seed(3))
    save_model(folder / "scores/model", scores, TOKENIZER, {})
    alone = World(folder, folder)
    with contextlib.suppress(Interrupted), stopping_at(0):
        alone.pretrain()
    (folder / "pretrain").rename(folder / "shards")


def resumed(inputs: Path, folder: Path, count: int) -> None:
    """Pretraining begun by two processes with half a model each, and ended by ``count``."""
    config = replace(PRETRAIN, model=replace(PRETRAIN.model, dropout=0.1 if count == 2 else 0.0))
    world = World(inputs, folder, "on")

    def begin() -> None:
        with stopping_at(20):
            world.pretrain(config)

    in_processes(2, folder.with_suffix(".begin"), begin)
    in_processes(count, folder.with_suffix(".end"), lambda: world.pretrain(config))


def stop_a_step_later(inputs: Path, folder: Path) -> None:
    """Two pretrain; the second gets a signal in step 5, the first in step 6."""
    world = World(inputs, folder)

    def work() -> None:
        assert parallel._group is not None
        rank, said = parallel._group.rank, "ended"
        try:
            with stopping_at(5 - rank):
                world.pretrain()
        except BaseException as error:
            said = type(error).__name__
        steps = [path.name for path in folder.glob("pretrain/checkpoints/step-*")]
        write_json(folder / f"{rank}.json", {"said": said, "saved": steps})

    in_processes(2, folder.with_suffix(".store"), work)


def wait_for_one_that_ends(folder: Path) -> None:
    """The second waits for a word of the first, which ends, and the store with it."""
    port = free_port()

    def make_store(rank: int) -> Any:
        wait = datetime.timedelta(seconds=20)
        return dist.TCPStore("127.0.0.1", port, 2, is_master=rank == 0, timeout=wait)

    def work() -> None:
        assert parallel._group is not None
        if parallel._group.rank == 0:
            time.sleep(0.3)
            os._exit(0)
        signal.signal(signal.SIGALRM, lambda *_: os._exit(0))  # it would wait for ever
        signal.alarm(15)
        try:
            parallel.hear()
        except BaseException as error:
            write_json(folder / "left.json", {"kind": type(error).__name__, "said": str(error)})

    in_processes(2, folder, work, make_store=make_store)


def note_kept_weights(folder: Path) -> None:
    """How many of the blocks' matrices the backward pass needs, and bytes of them that two
    processes with half a model each keep for it."""
    config = replace(PRETRAIN.model, vocabulary_size=300)
    found = {}
    with parallel.together() as team:
        for dtype in ("fp32", "bf16"):
            decoder = Decoder(config)
            shapes = {tuple(p.shape) for p in decoder.blocks.parameters() if p.ndim == 2}
            machine = resolve_machine(MachineConfig(precision=dtype, threads=1, sharding="on"))  # type: ignore[arg-type]
            (trained,) = in_parts(machine, decoder)
            kept: dict[Any, None] = {}

            def keep(tensor: torch.Tensor, kept: Any = kept, shapes: Any = shapes) -> torch.Tensor:
                if {tuple(tensor.shape), tuple(tensor.shape)[::-1]} & shapes:
                    kept[tensor.untyped_storage()] = None
                return tensor

            with saved_tensors_hooks(keep, lambda tensor: tensor), machine.autocast():
                trained(torch.zeros(1, 9, dtype=torch.long))
            found[dtype] = [len(kept), sum(each.nbytes() for each in kept)]
        if team.leads:
            write_json(folder / "kept.json", found)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    inputs = folder / "inputs"
    prepare(inputs)
    for count in (1, 2, 4):
        world = World(inputs, folder / str(count))
        in_processes(count, folder / f"store-{count}", world.all_stages)
        divided(folder, count)
        if count < 4:
            by_server(folder, count)
    sharded = World(inputs, folder / "sharded", "on")
    in_processes(2, folder / "store-sharded", sharded.all_stages)
    for count in (1, 2):
        resumed(inputs, folder / f"resumed-{count}", count)
    whole = World(inputs, folder / "whole-2", "on")
    config = replace(PRETRAIN, model=replace(PRETRAIN.model, dropout=0.1))
    in_processes(2, folder / "store-whole", lambda: whole.pretrain(config))
    for name, count in (("bf16-1", 1), ("bf16-sharded", 2)):
        world = World(inputs, folder / name, "on", "bf16")
        in_processes(count, folder / f"store-{name}", world.bf16_stages)
    in_processes(2, folder / "store-kept", partial(note_kept_weights, folder))
    stop_a_step_later(inputs, folder / "stopped")
    wait_for_one_that_ends(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
