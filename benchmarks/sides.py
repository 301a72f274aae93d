"""The sides of generation.py, each in a process of its own that does what it is asked."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from served import ask_all, hf_folder, vllm_server

OURS, OURS_INT8, OURS_PACKED = "lmsmith bf16", "lmsmith int8", "lmsmith 4 bits"
THEIRS, THEIRS_FP32 = "transformers bf16", "transformers fp32"
PEER_PACKED, PEER_EIGHT = "llama.cpp 4 bits", "llama.cpp 8 bits"
VLLM = "vLLM bf16"

PROMPT, FIRST_PROMPT, LONG_PROMPT, BATCH, MOST = 32, 512, 2048, 16, 64
CONTEXT = LONG_PROMPT + 256
Tasks = dict[str, Callable[[], float]]
TASKS = ("one", "batch16", "batch64", "first", "long")
"""Replies one, `BATCH` and `MOST` at a time; the first token of a prompt, and of a long one."""


@dataclass(frozen=True)
class Job:
    """What a worker does: a side, its file, its threads and the tokens of a reply."""

    side: str
    gguf: str
    threads: int
    tokens: int
    processor_time: bool
    llama_cpp: str = "xllamacpp"  # module of llama.cpp
    vllm: str = ""  # Python of vLLM's environment

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds of this process: of its processors, or of the wall."""
        return time.process_time if self.processor_time else time.perf_counter


class Worker:
    """A process of one side, which does what it is asked."""

    def __init__(self, job: Job) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=serve, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, what: str) -> float | None:
        """Seconds, or what else the number is; None for a task that the side does not have."""
        self._connection.send(what)
        try:
            answer: float | None = self._connection.recv()
        except EOFError:
            self._process.join()
            raise SystemExit("a side ended early; its error is above") from None
        return answer

    def stop(self) -> None:
        self._connection.close()
        self._process.join(timeout=90)
        if self._process.is_alive():
            self._process.kill()


def serve(connection: Connection, job: Job) -> None:
    """A worker's life: load, then answer until the other end closes."""
    import torch

    torch.set_num_threads(job.threads)
    llama = llama_tasks if job.llama_cpp == "xllamacpp" else llama_functions
    with contextlib.ExitStack() as closing:
        make = {
            "transformers": their_tasks,
            "llama.cpp": llama,
            "lmsmith": our_tasks,
            "vLLM": functools.partial(vllm_tasks, closing=closing),
        }
        tasks = make[job.side.split()[0]](job)
        while True:
            try:
                what = connection.recv()
            except EOFError:
                return
            connection.send(tasks[what]() if what in tasks else None)


def resident_bytes() -> float:
    """Memory of this process, as Linux counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * float(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


_turns = itertools.count()


def random_prompts(count: int, length: int) -> list[list[int]]:
    """Other prompts in every turn: no side finds rows of an earlier one in its cache."""
    return np.random.default_rng(next(_turns)).integers(1000, 40_000, (count, length)).tolist()


def timed(write: Callable[[int, int, int], tuple[float, float]], job: Job, most: int) -> Tasks:
    """`TASKS` of a side that writes up to ``most`` replies at a time.

    ``write`` takes number and length of the prompts, and tokens of a reply; it gives the seconds to
    the first token, and of those after it.
    """
    widths = {"one": 1, "batch16": BATCH, "batch64": MOST}
    prompts = {"first": FIRST_PROMPT, "long": LONG_PROMPT}
    return {
        name: functools.partial(lambda count: write(count, PROMPT, job.tokens)[1], count)
        for name, count in widths.items()
        if count <= most
    } | {
        name: functools.partial(lambda length: write(1, length, 1)[0], length)
        for name, length in prompts.items()
    }


def our_tasks(job: Job) -> Tasks:
    import torch

    from lmsmith.catalogue.reading import read_model
    from lmsmith.core.recipe import MachineConfig
    from lmsmith.generation.engine import Engine, Request, SamplingSettings
    from lmsmith.generation.inference import InferenceDecoder
    from lmsmith.training.machine import resolve_machine

    imports = resident_bytes()
    machine = resolve_machine(MachineConfig(precision="bf16"))
    kind: Any = "int8" if job.side == OURS_INT8 else "model"
    decoder = read_model(job.gguf, packed=job.side == OURS_PACKED).decoder
    config = decoder.config
    model = InferenceDecoder(decoder, machine, weights=kind)
    del decoder  # its numbers, or the mapped file

    def write(count: int, length: int, tokens: int) -> tuple[float, float]:
        prompts, settings = random_prompts(count, length), SamplingSettings(tokens, temperature=0)
        started = job.clock()
        engine = Engine(model)
        for prompt in prompts:
            engine.submit(Request(prompt, settings))
        engine.step()
        first = job.clock()
        while engine.busy:
            engine.step()
        return first - started, job.clock() - first

    def bandwidth() -> float:
        """Bytes a second of reading 512 MB, the best of several."""
        numbers, best = torch.ones(128 << 20), float("inf")
        for _ in range(8):
            started = job.clock()
            numbers.sum()
            best = min(best, job.clock() - started)
        return numbers.numel() * 4 / best

    def operations(length: int) -> float:
        """Operations of a written token, whose context is so long on average."""
        return config.training_flops_per_token(2 * length) / 3

    def reading(length: int) -> float:
        """Operations of a prompt, whose last token alone has logits."""
        unembedding = 2.0 * config.vocabulary_size * config.width
        return length * (operations(length // 2) - unembedding) + unembedding

    context = PROMPT + job.tokens // 2
    return {
        **timed(write, job, MOST),
        "steps": lambda: job.tokens - 1.0,
        "bytes": lambda: float(model.weight_bytes),
        "operations of one": lambda: (job.tokens - 1) * operations(context),
        "operations of batch16": lambda: BATCH * (job.tokens - 1) * operations(context),
        "operations of batch64": lambda: MOST * (job.tokens - 1) * operations(context),
        "operations of first": lambda: reading(FIRST_PROMPT),
        "operations of long": lambda: reading(LONG_PROMPT),
        "imports": lambda: imports,
        "resident": resident_bytes,
        "bandwidth": bandwidth,
    }


def their_tasks(job: Job) -> Tasks:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    import lmsmith
    from lmsmith.models.interop.transformers import to_transformers

    imports = resident_bytes()
    ours = lmsmith.load(job.gguf).decoder
    settings, state = to_transformers(ours.config, ours.state_dict())
    kind = torch.float32 if job.side == THEIRS_FP32 else torch.bfloat16
    model: Any = AutoModelForCausalLM.from_config(LlamaConfig(**settings), dtype=kind)
    model.load_state_dict(state, strict=False)  # the unembedding is the tied embedding
    model.eval()

    model.generation_config.eos_token_id = None  # nothing ends a reply early

    class Clock:
        """A streamer that notes when tokens come; the prompt comes first."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def put(self, tokens: torch.Tensor) -> None:
            self.times.append(job.clock())

        def end(self) -> None:
            pass

    def write(count: int, length: int, tokens: int) -> tuple[float, float]:
        prompts, clock = torch.tensor(random_prompts(count, length)), Clock()
        started = job.clock()
        model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=False,
            max_new_tokens=tokens,
            pad_token_id=0,
            streamer=clock,
        )
        assert len(clock.times) == tokens + 1
        return clock.times[1] - started, clock.times[-1] - clock.times[1]

    return {
        **timed(write, job, BATCH),
        "bytes": lambda: float(kind.itemsize * model.num_parameters()),
        "imports": lambda: imports,
        "resident": resident_bytes,
    }


def llama_tasks(job: Job) -> Tasks:
    import xllamacpp

    imports = resident_bytes()
    parameters = xllamacpp.CommonParams()
    parameters.verbosity = -1
    parameters.model.path, parameters.n_ctx, parameters.n_parallel = job.gguf, CONTEXT, 1
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = job.threads
    server = xllamacpp.Server(parameters)

    def processor_seconds(length: int, tokens: int) -> float:
        started = time.process_time()
        wall_seconds(length, tokens)
        return time.process_time() - started

    def write(_one: int, length: int, tokens: int) -> tuple[float, float]:
        if not job.processor_time:
            return wall_seconds(length, tokens)
        first = processor_seconds(length, 1)
        return first, processor_seconds(length, tokens) - first if tokens > 1 else 0.0

    def wall_seconds(length: int, tokens: int) -> tuple[float, float]:
        prompt = random_prompts(1, length)[0]
        asked = {"prompt": prompt, "max_tokens": tokens, "temperature": 0}
        answer = server.handle_completions(asked | {"cache_prompt": False, "ignore_eos": True})
        times = answer["timings"]
        assert (times["prompt_n"], times["predicted_n"]) == (length, tokens)
        return times["prompt_ms"] / 1e3, times["predicted_ms"] / 1e3

    return {
        **timed(write, job, 1),
        "bytes": lambda: float(Path(job.gguf).stat().st_size),
        "imports": lambda: imports,
        "resident": resident_bytes,
    }


def vllm_tasks(job: Job, closing: contextlib.ExitStack) -> Tasks:
    """The tasks by vLLM's server, asked over loopback."""
    folder = Path(closing.enter_context(tempfile.TemporaryDirectory()))
    model = hf_folder(job.gguf, folder)
    server = vllm_server(Path(job.vllm), model, MOST, CONTEXT, job.threads)
    port = closing.enter_context(server)

    def write(count: int, length: int, tokens: int) -> tuple[float, float]:
        """Seconds until every reply has begun, and of what follows."""
        found = asyncio.run(ask_all(port, random_prompts(count, length), tokens))
        return max(found.first), found.seconds - max(found.first)

    return {
        **timed(write, job, MOST),
        "bytes": lambda: float((model / "model.safetensors").stat().st_size),
    }


def llama_functions(job: Job) -> Tasks:
    """The tasks by llama.cpp's own functions, which llama-cpp-python has."""
    import ctypes

    import llama_cpp

    imports = resident_bytes()
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(
        job.gguf.encode(), llama_cpp.llama_model_default_params()
    )
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = CONTEXT, LONG_PROMPT, FIRST_PROMPT
    settings.n_threads = settings.n_threads_batch = job.threads
    context = llama_cpp.llama_init_from_model(model, settings)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def next_token(tokens: list[int]) -> int:
        array = (llama_cpp.llama_token * len(tokens))(*tokens)
        batch = llama_cpp.llama_batch_get_one(array, len(tokens))
        assert llama_cpp.llama_decode(context, batch) == 0
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(vocabulary,)).argmax())

    def write(_one: int, length: int, tokens: int) -> tuple[float, float]:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        started = job.clock()
        token = next_token(random_prompts(1, length)[0])
        first = job.clock()
        for _ in range(tokens - 1):
            token = next_token([token])
        return first - started, job.clock() - first

    return {
        **timed(write, job, 1),
        "bytes": lambda: float(Path(job.gguf).stat().st_size),
        "imports": lambda: imports,
        "resident": resident_bytes,
    }
