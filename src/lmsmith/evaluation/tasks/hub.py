"""Data from the Hugging Face hub, by its library ``datasets``; offline, from its cache."""

from __future__ import annotations

import contextlib
import importlib
import sys
import urllib.parse
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.evaluation.tasks.offline import caches_alone, why_offline
from lmsmith.evaluation.tasks.packaged import MissingData
from lmsmith.evaluation.tasks.spec import DataSpec

OLDEST = 4
"""Of ``datasets``: older ones can run code that a data set brings along."""


def read_hub(spec: DataSpec, split: str) -> list[dict[str, Any]]:
    """The rows of a split of a data set.

    Args:
        spec: names the data set (or a folder of one), its subset and revision.
        split: which part.

    Raises:
        MissingData: ``datasets`` is not installed; or the data set is neither to be reached nor
            in the cache.
        UserError: there is no such data set, subset or split.
    """
    _check_version()
    offline = (
        ""
        if Path(spec.hub).is_dir()
        else why_offline(f"api/datasets/{urllib.parse.quote(spec.hub)}")
    )
    datasets: Any = importlib.import_module("datasets")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    with caches_alone() if offline else contextlib.nullcontext():
        try:
            rows = datasets.load_dataset(
                spec.hub, spec.subset or None, split=split, revision=spec.revision or None
            )
        except Exception as error:
            said = " ".join(str(error).split())
            if offline:
                raise MissingData(
                    f"{spec.hub}: not in the cache of data sets, and {offline}",
                    "fetch it once with a network, or write it to a file and set data.file",
                ) from error
            raise UserError(
                f"data.hub {spec.hub}, split {split}: {type(error).__name__}: {said}",
                "check data.hub, data.subset, data.split and data.revision",
            ) from error
        if offline and spec.revision:
            _check_revision(spec, rows.cache_files, offline)
        return [dict(row) for row in rows]


def _check_revision(spec: DataSpec, files: Sequence[Mapping[str, str]], offline: str) -> None:
    """The library takes whatever commit its cache has last; a file's folder is named by its."""
    found = {Path(file["filename"]).parent.name for file in files}
    if found != {spec.revision}:
        raise MissingData(
            f"{spec.hub}: the cache holds {', '.join(sorted(found)) or 'no files'}, not revision "
            f"{spec.revision}, and {offline}",
            "fetch that commit once with a network, or set data.revision to what is there",
        )


def _check_version() -> None:
    try:
        found = metadata.version("datasets")
    except metadata.PackageNotFoundError as error:
        raise MissingData(
            "data.hub needs the package datasets", 'pip install "lmsmith[datasets]"'
        ) from error
    if int(found.split(".")[0]) < OLDEST:
        raise UserError(
            f"datasets {found}: it can run code from the hub", 'pip install "lmsmith[datasets]"'
        )
