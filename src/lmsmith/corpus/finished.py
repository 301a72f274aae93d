"""A finished corpus, as ``lmsmith corpus build`` leaves it, read by a run's data stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError, refusing_damage
from lmsmith.core.files import missing, read_json, sha256_file

CORPUS_FILE = "corpus.json"
VALIDATION_FILE = "validation.jsonl"
BUILD_FILE = "build.json"
"""Times, memory and machine of a build: what is not the same in another build."""
TOKENIZER_FOLDER = "tokenizer"

CORPUS_SHARDS_FILE = "corpus_shards.json"
"""In the data stage's folder: where the shards of a finished corpus are, and their sources."""

BUILD_AGAIN = "Build it again: lmsmith corpus build RECIPE."


@dataclass(frozen=True)
class FinishedCorpus:
    """The record of a corpus.

    Attributes:
        folder: of the shards, a folder a source in it, as `TokenShards.load` reads them.
        sources: name → tokens, bytes, documents, and weight: passes relative to other sources.
        record: all of ``corpus.json``.
    """

    folder: Path
    sources: dict[str, dict[str, float]]
    record: dict[str, Any]

    @classmethod
    def load(cls, corpus: Path) -> FinishedCorpus:
        """Read the folder ``out`` of a corpus's recipe.

        Raises:
            UserError: there is no finished corpus, or its record is damaged.
        """
        place = corpus / CORPUS_FILE
        if not place.is_file():
            problem = missing(corpus, f"no finished corpus: it has no {CORPUS_FILE}")
            raise UserError(problem, "Name the folder that lmsmith corpus build printed.")
        record: Any = read_json(place)
        with refusing_damage(place, BUILD_AGAIN):
            sources = {
                str(name): {"weight": 1.0, **{key: float(value) for key, value in about.items()}}
                for name, about in record["sources"].items()
            }
            return cls(corpus.absolute() / str(record["shards"]), sources, record)

    @property
    def validation(self) -> Path:
        """The held-out documents."""
        return self.folder / VALIDATION_FILE

    @property
    def removed(self) -> Path:
        """What the steps removed."""
        return self.folder.parent / str(self.record.get("removed", "removed.parquet"))

    @property
    def tokenizer(self) -> Path:
        """Folder of the tokenizer that the shards are made with."""
        return self.folder / TOKENIZER_FOLDER

    def check(self) -> None:
        """Compare every file with its checksum; tokens elsewhere have none here.

        Raises:
            UserError: a file is missing or damaged; it is named.
        """
        # Here, for they import NumPy, which the help does without.
        from lmsmith.corpus.remote_tokens import REMOTE_FILE
        from lmsmith.corpus.shards import OFFSETS_FILE

        with refusing_damage(self.folder, BUILD_AGAIN):
            expected = dict(self.record["files"])
            for part in self.record["parts"]:
                remote = (self.folder / part["folder"] / REMOTE_FILE).is_file()
                for name, content in part["files"].items():
                    if not remote or name == OFFSETS_FILE:
                        expected[f"{part['folder']}/{name}"] = content
        for name, content in expected.items():
            path = self.folder / name
            if not path.is_file():
                raise UserError(f"{path}: a file of the corpus is missing", BUILD_AGAIN)
            if sha256_file(path) != content:
                raise UserError(f"{path}: damaged: its checksum is another", BUILD_AGAIN)
