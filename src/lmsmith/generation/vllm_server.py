"""vLLM's server: which Python starts it, its options, its start, and its end with this process."""

from __future__ import annotations

import contextlib
import http.client
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmsmith.catalogue.remote import Call, Patience, RemoteError, RemoteModel, can_be_asked
from lmsmith.core.errors import UserError
from lmsmith.core.progress import Progress
from lmsmith.core.recipe import GenerationConfig
from lmsmith.core.terminal import in_one_line
from lmsmith.device import choose_device, is_host
from lmsmith.runs.signals import stop_if_requested

PYTHON = "LMSMITH_VLLM_PYTHON"
"""Environment variable with the Python that has vLLM."""

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM makes room for."""

LOG_FILE = "vllm.log"

NCCL_OPTION = "--weight-transfer-config", '{"backend": "nccl"}'
"""Option of a server that takes weights by NCCL, and its value."""

_OF_TORCHRUN = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT"),
)
"""Variables, beside TORCHELASTIC_…, by which a program belongs to the processes of a run.

What meets by TCP in a program that has them, as vLLM's replicas of data parallelism do, waits for
the run's store."""

CALLS, LOOKS = Patience(read=1800.0), Patience(read=60.0, retries=0)
"""Limits of requests, which may wait for all others, and of looks whether a server is ready."""

_LIBRARIES = "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"
_INSTALL = (
    "install vLLM in a virtual environment of its own (docs/gpus.md), and name its Python: "
    f"--set generation.vllm_python=.venv-vllm/bin/python, or {PYTHON}"
)


def vllm_python(config: GenerationConfig) -> str:
    """The Python that starts vLLM; a path with ``~`` is the user's."""
    return str(Path(config.vllm_python or os.environ.get(PYTHON) or sys.executable).expanduser())


def require_vllm(config: GenerationConfig) -> None:
    """Refuse a Python without vLLM, or an address where no server answers.

    Raises:
        UserError: with the fix.
    """
    if config.vllm_url:
        _require_calls(config.vllm_url)
        return
    python = vllm_python(config)
    if shutil.which(python) is None:
        raise UserError(f"generation.vllm_python = {python}: no such program", _INSTALL)
    find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    command = [str(Path(shutil.which(python) or "").absolute()), "-c", find]
    looked = subprocess.run(command, cwd="/", env=_environment(), capture_output=True, check=False)
    if looked.returncode:
        raise UserError(f'generation.engine = "vllm": {python} has no vLLM', _INSTALL)


def server_at(url: str) -> RemoteModel:
    """The server at an address, with or without ``/v1``."""
    return RemoteModel(url.rstrip("/").removesuffix("/v1"), "", patience=CALLS)


def _require_calls(url: str) -> None:
    """Refuse a server that does not answer, or does not let its weights be exchanged."""
    where = f"generation.vllm_url = {in_one_line(url)}"
    if not can_be_asked(url):
        raise UserError(f"{where}: no address of a server", "write http://127.0.0.1:8000")
    try:
        settings = server_settings(url)["model_config"]
    except RemoteError as error:
        if error.code == "upstream_unreachable":
            raise UserError(f"{where}: {error.problem}", "start that server first") from error
        raise UserError(
            f"{where}: this server does not let its weights be exchanged",
            "start vLLM with VLLM_SERVER_DEV_MODE=1",
        ) from error
    if settings.get("logprobs_mode") != "processed_logprobs":
        raise UserError(
            f"{where}: its log-probabilities are not of the distribution it draws from",
            "start vLLM with --logprobs-mode processed_logprobs",
        )


def has_lora(url: str) -> bool:
    """Whether a running server takes adapters."""
    return bool(server_settings(url).get("lora_config"))


def server_settings(url: str) -> dict[str, Any]:
    """All settings that a running server has resolved."""
    server = replace(server_at(url), patience=LOOKS)
    info = Call(server, "/server_info?config_format=json", None).result()
    found: dict[str, Any] = info["vllm_config"]
    return found


@contextlib.contextmanager
def running_server(
    config: GenerationConfig,
    model: Path,
    *,
    context: int,
    dtype: str,
    lora_rank: int,
    gpus: Sequence[str] = (),
    nccl: bool = False,
    folder: Path,
    progress: Progress,
) -> Iterator[RemoteModel]:
    """vLLM's server with a model, once it is ready; it ends with the block, or with this process.

    Args:
        config: gives the Python, and options.
        model: a Hugging Face folder.
        context: tokens of a prompt and its response.
        dtype: ``float32`` or ``bfloat16``.
        lora_rank: of adapters that come later; 0 for none.
        gpus: that it computes on, by CUDA's names; those that this process sees if empty.
        nccl: whether weights come by NCCL later.
        folder: gets the log.
        progress: shows the start, which takes a minute or more.

    Yields:
        The server, without ``/v1`` in its address.

    Raises:
        UserError: it did not start; the log's last error is named.
    """
    name, port, log = f"policy-{secrets.token_hex(4)}", _free_port(), folder / LOG_FILE
    words = [f"--model={model.absolute()}", f"--served-model-name={name}", "--host=127.0.0.1"]
    words += [f"--port={port}", f"--dtype={dtype}", f"--max-model-len={context}"]
    words += [
        f"--max-num-seqs={config.vllm_requests}",
        f"--gpu-memory-utilization={config.vllm_memory}",
    ]
    words += ["--generation-config=vllm", "--logprobs-mode=processed_logprobs"]
    if is_host(choose_device("auto")):
        # The build for processors (0.32) ends at a seeded request whose prompt is read in parts.
        words += ["--no-enable-chunked-prefill", f"--max-num-batched-tokens={max(4096, context)}"]
    if lora_rank:
        room = next((rank for rank in LORA_RANKS if rank >= lora_rank), lora_rank)
        words += ["--enable-lora", f"--max-lora-rank={room}", "--max-loras=1"]
    words += NCCL_OPTION if nccl else ()
    python = str(Path(shutil.which(vllm_python(config)) or "").absolute())
    command = [python, "-m", "vllm.entrypoints.openai.api_server", *words, *config.vllm_options]
    watch = [sys.executable, str(Path(__file__).with_name("process_watch.py")), *command]
    progress.say(f"starting vLLM's server, which takes a minute or more (log: {log})")
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(  # elsewhere a folder "vllm" would hide the package
            watch,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            cwd=folder,
            env=_environment(Path(python), gpus),
        )
    server = RemoteModel(f"http://127.0.0.1:{port}", name, patience=LOOKS)
    try:
        while not _serves(server):
            stop_if_requested()
            took = time.monotonic() - began
            if process.poll() is not None or took > config.vllm_start_seconds:
                what = "ended at its start" if process.poll() is not None else "is not ready"
                raise UserError(
                    f"vLLM's server {what} after {took:.0f} s: {_last_error(log)}", f"see {log}"
                )
            time.sleep(0.5)
        took = time.monotonic() - began
        progress.note(f"vLLM {_version(server)} is ready after {took:.0f} s on port {port}")
        yield replace(server, patience=CALLS)
    finally:
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        process.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _serves(server: RemoteModel) -> bool:
    """Whether the server answers, and is the one that was started: no other has this name."""
    with contextlib.suppress(RemoteError, http.client.HTTPException):
        listed = Call(server, "/v1/models", None).result()
        return any(each["id"] == server.model for each in listed["data"])
    return False


def _version(server: RemoteModel) -> str:
    return str(Call(server, "/version", None).result().get("version", ""))


def _last_error(log: Path) -> str:
    """The last line of the log that names an error; else the last line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line and "leaked" not in line]
    return in_one_line((errors or lines or ["its log is empty"])[-1])[-300:]


def _environment(python: Path | None = None, gpus: Sequence[str] = ()) -> dict[str, str]:
    """Variables of the server: its own packages, its GPUs, and on processors every core and fast
    memory."""
    foreign = ("PYTHONPATH", *_OF_TORCHRUN)
    kept = {
        name: text
        for name, text in os.environ.items()
        if name not in foreign and not name.startswith("TORCHELASTIC_")
    }
    kept |= {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}
    if python is None:
        return kept
    place = python.parent
    defaults = {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_CPU_OMP_THREADS_BIND": _cores(kept),
        "KMP_BLOCKTIME": "1",  # its threads must not keep the cores while the trainer computes
        "LD_PRELOAD": ":".join(_preloaded(place.parent / "lib")),
    }
    kept["PATH"] = f"{place}{os.pathsep}{kept.get('PATH', '')}"
    return {name: text for name, text in defaults.items() if text} | kept


def _cores(variables: Mapping[str, str]) -> str:
    """Numbers of the cores that the server computes on: as many as OMP_NUM_THREADS, or all."""
    if not hasattr(os, "sched_getaffinity"):
        return ""
    cores = sorted(os.sched_getaffinity(0))
    threads = variables.get("OMP_NUM_THREADS", "")
    return ",".join(map(str, cores[: int(threads) if threads.isdecimal() else None]))


def _preloaded(libraries: Path) -> Sequence[str]:
    """Libraries that vLLM's build for processors wants loaded first, where they are."""
    if platform.system() != "Linux":
        return []
    allocators = [Path(each) / "libtcmalloc_minimal.so.4" for each in _LIBRARIES]
    found = [next((each for each in allocators if each.is_file()), None)]
    found += [libraries / "libiomp5.so"] if (libraries / "libiomp5.so").is_file() else []
    return [str(each) for each in found if each is not None]
