"""A program that trains one tiny model in parts and saves it; ``parts_together.py FOLDER``.

It forks, so that PyTorch is imported once. ``FOLDER/NAME`` is the folder of a run of `STEPS` steps:
``1`` and ``2`` of so many processes without a break, ``A-B`` begun by A and ended by B
(``2-2whole`` undivided), ``damaged`` and ``killed-0`` continued by two after that happened.
``killed-0-left`` and ``killed-1`` are what a kill of a process left, ``stopped-N`` what N left
halfway. ``NAME.said`` is what the first process said last, ``NAME.errorRANK`` what ended one.
``FOLDER/memory.json`` says how far a save raised the memory of each process.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from forks import in_processes, stopping_at
from torch.distributed.checkpoint.filesystem import FileSystem

from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.device import HOST
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.runs.stage_folder import StageFolder, peak_memory_bytes, reset_peak_memory
from lmsmith.training import checkpoint, checkpoint_parts, loop, parallel
from lmsmith.training.checkpoint import Checkpoints
from lmsmith.training.machine import resolve_machine
from lmsmith.training.optimiser import Optimiser, OptimiserConfig
from lmsmith.training.sharding import divided

STEPS, HALFWAY, ROWS = 4, 2, 6
SHAPE = ModelConfig(1, 16, 2, 32, vocabulary_size=10)
"""The head has one row and one bias, so that other processes have an empty part of them."""
MUON = OptimiserConfig(name="muon", learning_rate=1e-3, matrix_learning_rate=2e-4)
BIG = 1 << 20
"""Numbers in each of 16 tensors whose save is measured."""


def train(folder: Path, sharding: str = "on") -> None:
    """Continue the run in ``folder`` to its end, in all processes of the group."""
    torch.manual_seed(5)
    model = ScalarModel(Decoder(SHAPE))
    config = MachineConfig(
        precision="fp32",
        threads=1,
        checkpoint_seconds=0.0,
        sharding=sharding,  # type: ignore[arg-type]
    )
    progress = QuietProgress()
    out = StageFolder(folder, 7, config, progress)
    out.path.mkdir(parents=True, exist_ok=True)
    with noting_errors(folder), contextlib.suppress(parallel.Parted), parallel.together() as team:
        (trained,) = divided(resolve_machine(config), model)
        optimiser = Optimiser(trained, MUON, trained.decoder.blocks)
        best = loop.BestWeights(trained)

        def step(index: int) -> Mapping[str, float]:
            generator = torch.Generator().manual_seed(index)
            tokens = torch.randint(SHAPE.vocabulary_size, (ROWS, 9), generator=generator)
            wanted = tokens.cumsum(1).float() / 40
            loss = (trained(tokens[team.rows]) - wanted[team.rows]).square().sum() / tokens.numel()
            loss.backward()
            norm = optimiser.step(1.0)
            (total,) = parallel.add_up(loss.item())
            best.offer((-total,), index)
            return {"loss": total, "gradient_norm": norm}

        if team.leads:
            progress.say = folder.with_suffix(".said").write_text  # type: ignore[assignment]
        state = {"model": trained, "optimiser": optimiser, "best": best}
        loop.run_steps(steps=STEPS, step=step, state=state, out=out, description="tiny")


@contextlib.contextmanager
def noting_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        assert parallel._group is not None
        folder.with_suffix(f".error{parallel._group.rank}").write_text(str(error))
        raise


def run(folder: Path, count: int, **options: Any) -> None:
    in_processes(count, folder.with_suffix(f".store{count}"), partial(train, folder, **options))


def halfway(folder: Path, count: int) -> None:
    def begin() -> None:
        with contextlib.suppress(Interrupted), stopping_at(HALFWAY - 1):
            train(folder)

    in_processes(count, folder.with_suffix(".begin"), begin)


@contextlib.contextmanager
def replaced(module: Any, name: str, by: Any) -> Iterator[None]:
    real = getattr(module, name)
    setattr(module, name, by)
    try:
        yield
    finally:
        setattr(module, name, real)


def failing(folder: Path, rank: int, module: Any, name: str, fail: Callable[..., Any]) -> None:
    """Two run until ``fail`` ends one where ``name`` is called in the save after `HALFWAY`."""

    def work() -> None:
        assert parallel._group is not None
        real, here = getattr(module, name), parallel._group.rank == rank

        def watched(*given: Any, **options: Any) -> Any:
            if here and (folder / f"checkpoints/step-{HALFWAY:08d}").exists():
                fail(*given)
            return real(*given, **options)

        with replaced(module, name, watched):
            train(folder)

    in_processes(2, folder.with_suffix(".fails"), work, allowed=(1, -signal.SIGKILL))


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_the_end(path: Path, value: object) -> None:
    """All parts are written then, and the checkpoint does not count yet."""
    if path.name == checkpoint.CHECKSUMS:
        die()


def fill_the_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def save_without_sharing(folder: Path) -> None:
    """Each process saves in a folder of its own, as on machines that share none."""
    with parallel.together() as team:
        (trained,) = divided(resolve_machine(MachineConfig(sharding="on")), Decoder(SHAPE))
        with contextlib.suppress(UserError), noting_errors(folder):
            Checkpoints(folder / str(team.rank)).save(1, trained.state_dict())


def save_where_one_is_late(folder: Path) -> None:
    """The second sees what all have written after the first has gone on, if that does not wait."""
    with parallel.together() as team:

        def gather_late(word: Any) -> list[Any]:
            words = parallel.gather(word)
            time.sleep(0.5 * team.rank)
            return words

        (trained,) = divided(resolve_machine(MachineConfig(sharding="on")), Decoder(SHAPE))
        late = replaced(checkpoint_parts, "gather", gather_late)
        with contextlib.suppress(UserError), noting_errors(folder), late:
            Checkpoints(folder).save(1, trained.state_dict())


def measure(folder: Path) -> None:
    """How far a save raises the memory of each process, in bytes; and how large the whole is."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, ones

    with parallel.together() as team:
        mesh = init_device_mesh(HOST.type, (team.count,))
        state = {str(n): ones(BIG, device_mesh=mesh, placements=[Shard(0)]) for n in range(16)}
        Checkpoints(folder / "big").save(1, state)  # imports what it needs
        reset_peak_memory()
        before = peak_memory_bytes()
        with replaced(checkpoint_parts, "FILE_BYTES", BIG * 4 // team.count):
            Checkpoints(folder / "big").save(2, state)
        rises = parallel.gather(peak_memory_bytes() - before)
        if team.leads:
            found = {"whole": 16 * 4 * BIG, "rises": rises}
            (folder / "memory.json").write_text(json.dumps(found))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    checkpoint_parts.FILE_BYTES = 2_000  # several files a process
    for count in (1, 2):
        run(folder / str(count), count)
        halfway(folder / f"stopped-{count}", count)
    for before, name, after, options in (
        (1, "1-2", 2, {}),
        (2, "2-1", 1, {}),
        (2, "2-2whole", 2, {"sharding": "off"}),
        (2, "2-4", 4, {}),
        (2, "damaged", 2, {}),
    ):
        shutil.copytree(folder / f"stopped-{before}", folder / name)
        if name == "damaged":
            *_, part = folder.glob(f"damaged/checkpoints/step-{HALFWAY:08d}/shard-00002-*")
            damage(part)
        run(folder / name, after, **options)
    failing(folder / "killed-0", 0, checkpoint, "write_json", die_at_the_end)
    failing(folder / "killed-1", 1, FileSystem, "create_stream", die)
    shutil.copytree(folder / "killed-0", folder / "killed-0-left")
    run(folder / "killed-0", 2)
    failing(folder / "full", 1, FileSystem, "create_stream", fill_the_disk)
    in_processes(2, folder / "store-unshared", partial(save_without_sharing, folder / "unshared"))
    in_processes(2, folder / "store-late", partial(save_where_one_is_late, folder / "late"))
    in_processes(2, folder / "store-memory", partial(measure, folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
