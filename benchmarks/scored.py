"""The two sides of benchmarks/evaluation.py: lmsmith, and lm-eval over transformers."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

Precision = Literal["fp32", "bf16"]

OURS, PEER = "lmsmith", "lm-eval"

BATCHES = (1, 8, 32)
"""Sizes that the peer tries."""


@dataclass(frozen=True)
class Part:
    """Some items of a task: our file of rows, and the same written out for the peer."""

    task: str
    folder: str
    name: str
    shots: int

    @property
    def own_rows(self) -> Path:
        return Path(self.folder) / f"{self.name}.jsonl"

    @property
    def peer_rows(self) -> Path:
        return Path(self.folder) / f"{self.name}-written.jsonl"


@dataclass(frozen=True)
class Job:
    """What a process is for."""

    side: str
    model: str
    precision: Precision
    threads: int


@dataclass(frozen=True)
class Scored:
    """A part's answer.

    Attributes:
        seconds: that count.
        cpu: seconds of processor time in the same stretch, of all threads: what a crowded machine
            changes least.
        whole: of the whole call.
        log_probs: of each choice of each item, in the file's order.
        accuracy, accuracy_per_character: right items, in number.
    """

    seconds: float
    cpu: float
    whole: float
    log_probs: tuple[tuple[float, ...], ...]
    accuracy: float
    accuracy_per_character: float


def task_of(name: str) -> Any:
    """A shipped task, measured by lm-eval's acc and acc_norm: nothing is read for other scores."""
    from lmsmith.evaluation.tasks.shipped import find_tasks

    (task,) = find_tasks([name])
    if task.kind != "multiple_choice" or task.prompt.contexts:
        sys.exit(f"{name} is no task of choices after one context")
    return replace(task, headline="accuracy")


def own_task(part: Part) -> Any:
    from lmsmith.evaluation.tasks.spec import DataSpec

    spec = DataSpec(file=part.own_rows.name, examples=f"{part.task}-pool.jsonl")
    return replace(task_of(part.task), name=part.name, data=spec)


def our_side(job: Job) -> dict[str, Callable[[Any], Any]]:
    from lmsmith.catalogue.reading import read_model
    from lmsmith.core.progress import QuietProgress
    from lmsmith.core.recipe import MachineConfig
    from lmsmith.evaluation.model import make_evaluated_model
    from lmsmith.evaluation.run import evaluate_task
    from lmsmith.evaluation.tasks.data import read_data
    from lmsmith.evaluation.tasks.prompts import choose_shots, with_shots
    from lmsmith.evaluation.tasks.spec import TaskSetting
    from lmsmith.training.machine import measure_matrix_peak, prepare_reading

    machine = prepare_reading(MachineConfig(threads=job.threads, precision=job.precision))
    subject = make_evaluated_model(read_model(job.model), machine)

    def score(part: Part) -> Scored:
        path = Path(part.folder)
        with tempfile.TemporaryDirectory() as out:
            started, cpu = time.perf_counter(), time.process_time()
            result = evaluate_task(
                subject, own_task(part), TaskSetting(part.shots, fixed=True), [path], Path(out),
                QuietProgress(),
            )  # fmt: skip
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        return Scored(
            seconds,
            cpu,
            seconds,
            tuple(tuple(each.log_prob for each in row.choices) for row in result.rows),
            sum(row.value("accuracy") for row in result.rows),
            sum(row.value("accuracy_per_character") for row in result.rows),
        )

    def operations(part: Part) -> float:
        """Operations of the products that cannot be left out, by a tree of the items' tokens."""
        task, setting = own_task(part), TaskSetting(part.shots, fixed=True)
        read = read_data(task, [Path(part.folder)])
        asked = [
            with_shots(task, item, choose_shots(subject, task, setting, item, read.pool))
            for item in read.items
        ]
        pairs = subject.encode_pairs(
            [(q.contexts[0], task.prompt.delimiter + c) for q in asked for c in q.choices]
        )
        nodes: dict[tuple[int, int], int] = {}
        scored: set[int] = set()
        for pair in pairs:
            node = 0
            for place, token in enumerate(pair.tokens[:-1]):
                node = nodes.setdefault((node, token), len(nodes) + 1)
                if place >= len(pair.tokens) - 1 - pair.scored:
                    scored.add(node)
        config = subject.model.config
        layers = sum(
            parameter.numel()
            for name, parameter in subject.model.decoder.blocks.named_parameters()
            if parameter.dim() == 2
        )
        return 2.0 * (len(nodes) * layers + len(scored) * config.vocabulary_size * config.width)

    return {
        "ready": lambda _: True,
        "warm": lambda part: score(part).seconds,
        "score": score,
        "operations": operations,
        "peak": lambda _: measure_matrix_peak.__wrapped__(job.precision),
    }


def peer_side(job: Job) -> dict[str, Callable[[Any], Any]]:
    os.environ |= {
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }
    warnings.simplefilter("ignore")
    import logging

    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.disable(logging.WARNING)
    torch.set_num_threads(job.threads)
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[job.precision]
    reader = HFLM(pretrained=job.model, device="cpu", dtype=dtype, batch_size=BATCHES[0])
    manager = TaskManager(include_defaults=False)  # its own thousands of tasks take seconds to list
    inner, taken = reader.loglikelihood, (0.0, 0.0)

    def timed(*arguments: Any, **named: Any) -> Any:
        nonlocal taken
        started, cpu = time.perf_counter(), time.process_time()
        result = inner(*arguments, **named)
        taken = (time.perf_counter() - started, time.process_time() - cpu)
        return result

    reader.loglikelihood = timed

    def score(part: Part) -> Scored:
        started = time.perf_counter()
        with silenced():
            found = simple_evaluate(
                model=reader, tasks=[lm_eval_task(part)], num_fewshot=0, bootstrap_iters=0,
                log_samples=True, task_manager=manager,
            )  # fmt: skip
        whole = time.perf_counter() - started
        samples = sorted(found["samples"][part.name], key=lambda sample: sample["doc_id"])
        return Scored(
            *taken,
            whole,
            tuple(tuple(float(each[0]) for each in s["filtered_resps"]) for s in samples),
            sum(sample["acc"] for sample in samples),
            sum(sample["acc_norm"] for sample in samples),
        )

    def warm(part: Part) -> float:
        """Seconds of a first call; then the batch size is chosen."""
        first = score(part).whole
        seconds = {}
        for size in BATCHES:
            reader.batch_size_per_gpu = size
            seconds[size] = score(part).seconds
        reader.batch_size_per_gpu = min(seconds, key=seconds.__getitem__)
        return first

    return {
        "ready": lambda _: True,
        "warm": warm,
        "score": score,
        "batch": lambda _: reader.batch_size_per_gpu,
    }


def lm_eval_task(part: Part) -> dict[str, Any]:
    """The written-out rows as a task of lm-eval."""
    files = {"test": str(part.peer_rows)}
    return {
        "task": part.name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": f"{part.folder}/cache"},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "target_delimiter": task_of(part.task).prompt.delimiter,
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """What lm-eval says of its progress goes nowhere."""
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
