"""Three small stages that behave as the real ones must: checkpoints, metrics, clean stops."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lmsmith.core.config import Problem
from lmsmith.core.errors import Interrupted
from lmsmith.core.files import atomic_write
from lmsmith.core.recipe import MachineConfig
from lmsmith.runs.signals import stop_requested
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages.table import Stage

STAGES = (
    Stage("make", "tiny_stages", "TinyConfig"),
    Stage("grow", "tiny_stages", "TinyConfig", {"base": "make"}),
    Stage("measure", "tiny_stages", "TinyConfig", {"model": "grow"}, {"other": "side"}),
    Stage("side", "tiny_stages", "TinyConfig", {"base": "make"}),
)


@dataclass(frozen=True)
class TinyConfig:
    """A hash chain of ``steps`` links over the inputs, a checkpoint every link."""

    steps: int = 3
    rate: float = 0.02
    pause: float = 0.0
    write_bytes: int = 0
    files: tuple[str, ...] = ()
    signal_at: int = -1
    fail_at: int = -1

    def external_files(self) -> list[str]:
        return list(self.files)

    def check(self) -> list[Problem]:
        if self.rate > 0:
            return []
        return [Problem("rate", self.rate, "must be above 0", "0.02 is usual")]


def run(config: TinyConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    log, checkpoint = out.metrics_log(), out.checkpoints / "last.txt"
    if checkpoint.exists():
        first, link = checkpoint.read_text().split()
        step = int(first)
        log.truncate_after(step)
    else:
        parts = [str(out.seed), str(config.rate)]
        parts += [(folder / "link.txt").read_text() for folder in inputs.values()]
        parts += [Path(name).read_text() for name in config.files]
        step, link = 0, "|".join(parts)
    resumed = step
    out.progress.begin("linking", config.steps, "links", done=step)
    while step < config.steps:
        if step == config.fail_at and not resumed:
            raise RuntimeError("a programming error")
        if step == config.signal_at and not resumed:
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(config.pause)
        link = hashlib.sha256(f"{link}{step}".encode()).hexdigest()
        step += 1
        log.append(step, {"loss": 1 / step})
        atomic_write(checkpoint, f"{step} {link}")
        out.progress.update(step, loss=1 / step)
        if (number := stop_requested()) is not None:
            raise Interrupted(number)
    out.progress.end()
    if config.write_bytes:
        with (out / "large.bin").open("wb") as file:
            file.write(bytes(config.write_bytes))
    out.progress.say("a warning")
    atomic_write(out / "link.txt", link)
    atomic_write(out / "model" / "copy.txt", link)
    return {"loss": 1 / step}


def prepare(_: MachineConfig) -> dict[str, object]:
    return {"precision": "fp32"}
