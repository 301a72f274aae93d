"""What the measurements of `lmsmith serve` share: its process, and a client that may hang up."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec


@dataclass
class Server:
    """`lmsmith serve` in a process of its own."""

    process: subprocess.Popen[str]
    port: int

    def memory(self) -> int:
        """Bytes of memory that are its own, now."""
        return self._status("RssAnon:")

    def resident(self) -> int:
        """Bytes of memory that it holds, those of its files and libraries included."""
        return self._status("VmRSS:")

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
        raise RuntimeError("the process has no memory")

    def event_loop_seconds(self) -> float:
        """Processor time of its first thread, in which the event loop runs, until now."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


@contextlib.contextmanager
def serving(*words: str) -> Iterator[Server]:
    """A server on a free port, once it is ready; the server ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lmsmith", "serve", *words, "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if "is ready" in line), None)
        if line is None:
            sys.exit("the server did not start")
        yield Server(process, int(line.split("/v1")[0].rpartition(":")[2]))
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def vllm_server(
    python: Path, model: Path, streams: int, longest: int, threads: int, wait: float = 600
) -> Iterator[int]:
    """The port of vLLM's server, once it is ready; the server ends with the block.

    Args:
        python: of an environment that has vLLM's build for processors; it is held to the
            instructions of this process's variables, which it inherits.
        model: a Hugging Face folder.
        streams: sequences that it answers together.
        longest: tokens of a prompt and its reply.
        threads: OpenMP's, each on a core.
        wait: seconds to its start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [f"--model={model}", "--dtype=bfloat16", f"--max-model-len={longest}"]
    words += [f"--max-num-seqs={streams}", "--host=127.0.0.1", f"--port={port}"]
    cores = ",".join(f"{core}" for core in sorted(os.sched_getaffinity(0))[:threads])
    variables = {
        "VLLM_CPU_OMP_THREADS_BIND": cores,
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "OMP_NUM_THREADS": f"{threads}",
    }
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(
        [str(python), "-m", "vllm.entrypoints.openai.api_server", *words],
        stdout=sys.stderr,
        env=kept | variables,
    )
    try:
        until = time.monotonic() + wait
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > until:
                sys.exit("vLLM's server did not start")
            time.sleep(1)
        yield port
    finally:
        process.terminate()
        process.wait(60)


def _answers(port: int) -> bool:
    return _got(port, "/health") is not None


def vllm_version(port: int) -> str:
    """The version that vLLM's server tells; empty if it tells none."""
    return str(json.loads(_got(port, "/version") or b"{}").get("version", ""))


def vllm_package(python: Path) -> str:
    """The version of vLLM's package in an environment."""
    find = "from importlib.metadata import packages_distributions as p, version as v"
    command = [str(python), "-c", f"{find}; print(v(p()['vllm'][0]))"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _got(port: int, path: str) -> bytes | None:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
            content: bytes = response.read()
            return content
    except OSError:
        return None


@dataclass
class Response:
    """Status, headers by their names in small letters, and what has not been read yet."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader

    async def body(self) -> bytes:
        """All that comes, which is bounded by its length, by chunks or by the end."""
        if "content-length" in self.headers:
            return await self.reader.readexactly(int(self.headers["content-length"]))
        if self.headers.get("transfer-encoding") != "chunked":
            return await self.reader.read()
        found = b""
        while size := int(await self.reader.readline(), 16):
            found += await self.reader.readexactly(size)
            await self.reader.readline()
        await self.reader.readline()
        return found

    async def json(self) -> Any:
        return json.loads(await self.body())

    async def events(self) -> AsyncIterator[Any]:
        """The objects of an event stream; None is its ``[DONE]``.

        Raises:
            ConnectionError: the stream broke off.
        """
        rest = b""
        while data := await self.reader.read(2**16):
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                if line.startswith(b"data: [DONE]"):
                    yield None
                    return
                if line.startswith(b"data: "):
                    yield msgspec.json.decode(line[6:])
                if line == b"0\r":
                    return
        raise ConnectionError("the stream broke off")


@contextlib.asynccontextmanager
async def asked(
    port: int,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[Response]:
    """A request on a connection of its own; leaving hangs up.

    Args:
        port: on this machine.
        method, path: what is asked.
        body: an object, which is sent as JSON, or bytes, which are sent as they are.
        headers: beside the usual ones.
    """
    content = (
        body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    )
    named = {
        "Host": "localhost",
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
        "Connection": "close",
        **(headers or {}),
    }
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {text}" for name, text in named.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1", "replace") + content)
        # What is refused early may be answered, and the connection closed, before all is written.
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        yield await _head(reader)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _head(reader: asyncio.StreamReader) -> Response:
    first = await reader.readline()
    if not first:
        raise ConnectionError("no answer")
    found: dict[str, str] = {}
    while (line := await reader.readline()).strip():
        name, _, text = line.decode("latin-1").partition(":")
        found[name.strip().lower()] = text.strip()
    return Response(int(first.split()[1]), found, reader)


@dataclass(frozen=True)
class Measured:
    """One turn: tokens a second, each stream's seconds to its first token, and seconds of all."""

    rate: float
    first: tuple[float, ...]
    seconds: float


async def ask_all(port: int, prompts: list[list[int]], tokens: int) -> Measured:
    """Ask a server for the continuation of every prompt at the same time."""
    started = time.perf_counter()
    results = await asyncio.gather(*(ask(port, prompt, tokens) for prompt in prompts))
    seconds = time.perf_counter() - started
    if any(written != tokens for written, _ in results):
        sys.exit(f"a reply has another length than {tokens} tokens")
    written = sum(count for count, _ in results)
    return Measured(written / seconds, tuple(first for _, first in results), seconds)


async def ask(port: int, prompt: list[int], tokens: int) -> tuple[int, float]:
    """Tokens written, by the server's count, and seconds to the first event."""
    body = {
        "prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True}, "cache_prompt": False,
    }  # fmt: skip
    return await post(port, "/v1/completions", body)


async def post(port: int, path: str, body: dict[str, Any]) -> tuple[int, float]:
    """Tokens written, and seconds to the first event."""
    started, first, written = time.perf_counter(), 0.0, 0
    async with asked(port, "POST", path, body) as response:
        async for event in response.events():
            first = first or time.perf_counter() - started
            if event is not None and event.get("usage"):
                written = event["usage"]["completion_tokens"]
    return written, first


def hf_folder(model: str, folder: Path) -> Path:
    """The model for vLLM: a Hugging Face folder with weights in bf16."""
    from lmsmith.catalogue.export import export
    from lmsmith.catalogue.reading import read_model
    from lmsmith.catalogue.resolve import resolve

    return export(read_model(resolve(model).path), folder / "model", "hf", "bf16").path


def tiny_model(folder: Path) -> Path:
    """A model of random weights that anybody can serve at once."""
    import torch

    from lmsmith.models.config import ModelConfig
    from lmsmith.models.decoder import Decoder
    from lmsmith.models.folder import save_model
    from lmsmith.tokenizers import Tokenizer

    tokenizer = Tokenizer.train(["what do you like? I like rain and tea, said the cat."] * 9, 400)
    decoder = Decoder(ModelConfig(2, 64, 4, 512, tokenizer.vocabulary_size))
    decoder.initialise(torch.Generator().manual_seed(0))
    save_model(folder / "tiny", decoder, tokenizer, {})
    return folder / "tiny"
