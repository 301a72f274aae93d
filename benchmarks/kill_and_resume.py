"""Kill a small run of all stages at random moments; does it end as if nothing had happened?

A tiny recipe of every stage is run unbroken once. Then, in fresh run folders, the same command is
started, killed (SIGKILL, the whole process group) while a chosen stage is at work, started again,
killed in another stage, … and at last left to end. Every file of weights, rankings, samples and
metrics must then be what the unbroken run made, bit for bit; only times may differ.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from lmsmith.core.files import read_json, write_jsonl
from lmsmith.runs.stage_folder import available_cores, derive_seed
from lmsmith.stages.table import STAGES as ALL_STAGES

RECIPE = """
description = "Every stage, each about a second long."
seed = 7

[machine]
threads = 1
checkpoint_seconds = 0.1

[data]
conversations = ["conversations.jsonl"]
either_side = true

[data.splits]
demonstrations = 0.30
comparisons = 0.20
prompts = 0.20
judge = 0.15
test = 0.10
validation = 0.05

[tokenizer]
vocabulary_size = 320

[pretrain]
tokens = 102_400
batch_tokens = 1024
validation_documents = 8

[pretrain.model]
layers = 2
width = 32
heads = 2
context = 128

[sft]
epochs = 2.0
batch_tokens = 1024
dropout = 0.1
validation_conversations = 8

[rankings]
max_prompts = 400
max_test_prompts = 60
max_new_tokens = 40

[reward]
epochs = 2
batch_prompts = 8
validations = 2

[ppo]
iterations = 16
rollouts = 16
minibatch = 8
ppo_epochs = 2
kl_control = "adaptive"
kl_coefficient = 0.05
ptx_coefficient = 0.5
ptx_rows = 2
max_new_tokens = 16
max_prompt_tokens = 80
snapshots = 2

[judge_rankings]
split = "judge"
max_prompts = 400
max_test_prompts = 60
max_new_tokens = 40

[judge]
epochs = 2
batch_prompts = 8
validations = 2

[evaluate]
max_document_bytes = 20_000
max_conversations = 20
max_prompts = 80
max_new_tokens = 40
frontier_prompts = 40
frontier_snapshots = 2
"""

SUBJECTS = "the cat|my sister|an old friend|our teacher|the rain|a green boat|the baker|my bike"
VERBS = "likes|forgot|found|dreams of|cannot stand|talks about|painted|lost|waits for|sold"
OBJECTS = "warm bread|the sea|two red shoes|long letters|music at night|a quiet street|snow|maps"
OPENERS = "well, |oh! |hm, |yes, |no way: |really? |你好! |haha, |so |"
ENDINGS = ".|!|, i think.|, you know?| :)|, sadly.| again.| today."

TIMES = re.compile(r"(.*tokens_per_second|share_of_peak|seconds.*|.*seconds|peak_.*|started)$")
"""Names of figures that measure time, and so may differ between two equal runs."""

MOST_FOLDERS = 10
"""Folders begun for one run's kills; more are never needed but by a fault."""

Runs = Annotated[int, tyro.conf.arg(metavar="N")]

STAGES = [stage for stage in ALL_STAGES if stage.name != "base"]
"""Those of the recipe below, which pretrains its model."""


@dataclass(frozen=True)
class Kill:
    """One kill and what it hit.

    Attributes:
        run: number of the run folder.
        stage: at work when the kill came; ``between stages`` if none was.
        after_seconds: from that stage's beginning in that process.
        step: last step in its metrics log; −1 where it has none.
        checkpoint: step of its newest checkpoint; −1 where it has none.
        identical: whether the run that it hit ended like the unbroken one.
    """

    run: int
    stage: str
    after_seconds: float
    step: int
    checkpoint: int
    identical: bool = False


def main(
    kills: Runs = 20,
    kills_per_run: Runs = 5,
    seed: int = 0,
    set: Annotated[
        tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="STAGE.KEY=VALUE")
    ] = (),
    keep: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    json: bool = False,
) -> int:
    """Kill a small run of all stages at random moments and compare it with an unbroken one.

    Example: python benchmarks/kill_and_resume.py --kills 20

    Exits with 1 if any run did not end identical.

    Args:
        kills: How many; they go through the stages in turn.
        kills_per_run: Most kills in one run folder before it may end.
        seed: Of the stages' order and the moments.
        set: Change a setting of the small recipe, e.g. machine.compile=on.
        keep: Work in this folder, which must not exist, and leave it there.
        json: Print one JSON object instead of the table.
    """
    if keep is not None:
        keep.mkdir(parents=True)
    place = keep or Path(tempfile.mkdtemp(prefix="kill-and-resume-"))
    try:
        found, differences, reference = measure(place, kills, kills_per_run, seed, set)
    finally:
        if keep is None:
            shutil.rmtree(place, ignore_errors=True)
    identical = sum(kill.identical for kill in found)
    if json:
        print_json(
            {
                "kills": len(found),
                "identical": identical,
                "unbroken_seconds": reference,
                "differences": differences,
                "by_kill": [asdict(kill) for kill in found],
            }
        )
    else:
        print_table(found, differences)
    return 0 if identical == len(found) == kills else 1


def measure(
    place: Path, kills: int, kills_per_run: int, seed: int, settings: Sequence[str]
) -> tuple[list[Kill], list[str], dict[str, float]]:
    """All kills, what differed, and the seconds of each stage in the unbroken run."""
    status = Console(stderr=True)
    write_jsonl(place / "conversations.jsonl", conversations(500))
    (place / "tiny.toml").write_text(RECIPE, encoding="utf-8")
    command = Command(place, tuple(settings))
    command.finish("unbroken")
    unbroken = place / "unbroken"
    seconds = {
        stage.name: float(as_mapping(unbroken / stage.name / "stage.json")["wall_seconds"])
        for stage in STAGES
    }
    status.print(f"unbroken: {sum(seconds.values()):.1f} s in {len(seconds)} stages")
    planned = plan(list(seconds), kills, kills_per_run, random.Random(seed))
    found: list[Kill] = []
    differences: list[str] = []
    # A run has one thread, so as many go at once as there are cores.
    with ThreadPoolExecutor(available_cores()) as pool:
        moments = random.Random(derive_seed(seed, "moments"))
        jobs = [
            pool.submit(
                killed_run,
                command,
                number,
                [(stage, moments.uniform(0.0, seconds[stage])) for stage in targets],
            )
            for number, targets in enumerate(planned, start=1)
        ]
        for number, job in enumerate(jobs, start=1):
            hits, differs = job.result()
            found += hits
            differences += [f"run {number}: {difference}" for difference in differs]
            verdict = "identical" if not differs else "; ".join(differs[:5])
            status.print(f"run {number}: {', '.join(hit.stage for hit in hits)}: {verdict}")
    return found, differences, seconds


def killed_run(
    command: Command, number: int, targets: Sequence[tuple[str, float]]
) -> tuple[list[Kill], list[str]]:
    """One run folder: killed as often as there are targets, then run to its end and compared.

    A run may come to its end before a kill meant for it, as a resumed stage is shorter than a
    fresh one; the kills that are left then hit a folder begun anew, this one twice as early.
    """
    hits: list[Kill] = []
    differences: list[str] = []
    part, waiting = 0, 1.0
    while True:
        part += 1
        name = f"killed-{number}-{part}"
        while len(hits) < len(targets):
            stage, moment = targets[len(hits)]
            if not command.kill_in(name, stage, moment * waiting):
                waiting /= 2
                break
            hits.append(describe_kill(command.place / name, number, moment * waiting))
            waiting = 1.0
        command.finish(name)
        differences += compare(command.place / "unbroken", command.place / name)
        if len(hits) == len(targets):
            identical = not differences
            return [replace(hit, identical=identical) for hit in hits], differences
        if part > MOST_FOLDERS:
            raise SystemExit(f"{name}: ends before it can be killed in {stage}")


def plan(
    stages: Sequence[str], kills: int, kills_per_run: int, chance: random.Random
) -> list[list[str]]:
    """Which stage each kill is meant for, a list a run, in the order they come.

    Every stage is meant once before any is meant again.
    """
    targets: list[str] = []
    while len(targets) < kills:
        targets += chance.sample(list(stages), len(stages))
    targets = targets[:kills]
    runs = [targets[start : start + kills_per_run] for start in range(0, kills, kills_per_run)]
    return [sorted(run, key=list(stages).index) for run in runs]


@dataclass(frozen=True)
class Command:
    """``lmsmith run`` of the small recipe, in a process group of its own."""

    place: Path
    settings: tuple[str, ...]

    def start(self, name: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "lmsmith", "run", "tiny.toml", "--folder", name]
        for setting in self.settings:
            words += ["--set", setting]
        python_path = [str(Path(path).resolve()) for path in sys.path if path]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(python_path)}
        with (self.place / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                words,
                cwd=self.place,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def finish(self, name: str) -> None:
        """Run to the end."""
        if self.start(name).wait() != 0:
            log = (self.place / f"{name}.log").read_text(encoding="utf-8", errors="replace")
            raise SystemExit(f"{name} failed:\n{log[-4000:]}")

    def kill_in(self, name: str, stage: str, after_seconds: float) -> bool:
        """Start, and kill so long after the stage began; False if the run ended before."""
        started = self.place / name / stage / "started.json"
        launched = time.time()
        process = self.start(name)
        while process.poll() is None and not written_since(started, launched):
            time.sleep(0.005)
        try:
            process.wait(timeout=after_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        if process.returncode != 0:
            log = (self.place / f"{name}.log").read_text(encoding="utf-8", errors="replace")
            raise SystemExit(f"{name} failed:\n{log[-4000:]}")
        return False


def written_since(path: Path, moment: float) -> bool:
    try:
        return path.stat().st_mtime >= moment
    except FileNotFoundError:
        return False


def describe_kill(folder: Path, run: int, moment: float) -> Kill:
    """What a kill hit, from what it left in the run folder."""
    for stage in STAGES:
        path = folder / stage.name
        if (path / "started.json").exists() and not (path / "stage.json").exists():
            steps = [row["step"] for row in rows_of(path / "metrics.jsonl", whole=False)]
            saved = [int(found.name[5:]) for found in path.glob("checkpoints/step-????????")]
            return Kill(
                run,
                stage.name,
                round(moment, 3),
                steps[-1] if steps else -1,
                max(saved, default=-1),
            )
    return Kill(run, "between stages", round(moment, 3), -1, -1)


def compare(unbroken: Path, killed: Path) -> list[str]:
    """What differs between two run folders, times left out; empty if nothing does."""
    differences: list[str] = []
    for stage in STAGES:
        left, right = unbroken / stage.name, killed / stage.name
        names = sorted({*outputs(left), *outputs(right)})
        for name in names:
            one, other = left / name, right / name
            if not (one.is_file() and other.is_file()):
                missing = "unbroken" if not one.is_file() else "killed"
                differences.append(f"{stage.name}/{name} is missing in the {missing} run")
            elif one.read_bytes() != other.read_bytes() and content(one) != content(other):
                differences.append(f"{stage.name}/{name} differs")
        steps = [row["step"] for row in rows_of(right / "metrics.jsonl", whole=True)]
        if steps != list(range(1, len(steps) + 1)):
            differences.append(f"{stage.name}/metrics.jsonl has a gap or a repeat: {steps}")
    return differences


def outputs(folder: Path) -> Iterator[str]:
    """All files below a stage's folder, by relative name."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix()


def content(path: Path) -> Any:
    """A file as data without its times: bytes, or JSON with the figures of time left out."""
    if path.suffix == ".jsonl":
        return [without_times(row) for row in rows_of(path, whole=True)]
    if path.name in ("stage.json", "card.json"):
        record = as_mapping(path)
        # Hashes of the other files: these are compared themselves, times left out.
        left_out = ("checksum", "outputs", "output_bytes", "input_contents", "machine", "hardware")
        return without_times({key: value for key, value in record.items() if key not in left_out})
    return path.read_bytes()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if not TIMES.match(key)}
    if isinstance(value, list):
        return [without_times(item) for item in value]
    return value


def rows_of(path: Path, *, whole: bool) -> list[dict[str, Any]]:
    """Rows of a JSONL file; unless ``whole``, the last may be torn."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            if whole:
                raise
    return rows


def as_mapping(path: Path) -> dict[str, Any]:
    found = read_json(path)
    assert isinstance(found, dict)
    return found


def conversations(count: int) -> Iterator[dict[str, Any]]:
    """Generated talk, varied enough that no two conversations are alike."""
    chance = random.Random(11)
    words = [part.split("|") for part in (OPENERS, SUBJECTS, VERBS, OBJECTS, ENDINGS)]
    for number in range(count):
        messages = []
        for turn in range(chance.randrange(4, 9)):
            opener, subject, verb, thing, ending = (chance.choice(part) for part in words)
            text = f"{opener}{subject} {verb} {thing}{ending}"
            messages.append({"role": ("user", "assistant")[turn % 2], "content": text})
        yield {"id": f"talk-{number}", "messages": messages}


def print_table(kills: Sequence[Kill], differences: Sequence[str]) -> None:
    table = Table(title="Killed and run again: does it end like an unbroken run?")
    for name, side in (
        ("run", "right"),
        ("stage hit", "left"),
        ("after (s)", "right"),
        ("last step", "right"),
        ("checkpoint", "right"),
        ("identical", "left"),
    ):
        table.add_column(name, justify=side)  # type: ignore[arg-type]
    for kill in kills:
        table.add_row(
            str(kill.run),
            kill.stage,
            f"{kill.after_seconds:.2f}",
            str(kill.step) if kill.step >= 0 else "–",
            str(kill.checkpoint) if kill.checkpoint >= 0 else "–",
            "yes" if kill.identical else "[bold red]no[/]",
        )
    console = Console()
    console.print(table)
    for difference in differences:
        console.print(difference, style="red", markup=False)
    console.print(f"{sum(kill.identical for kill in kills)} of {len(kills)} identical")


def print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    sys.exit(tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,)))
