"""Settings of a corpus: its sources and the steps, each a table of ``corpus.toml``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import msgspec

from lmsmith.core.config import (
    MISSING,
    NOT_A_SETTING,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Problem,
    SettingsError,
    apply_overrides,
    decode,
    parse_toml,
)
from lmsmith.core.files import beside, is_there
from lmsmith.core.recipe import CORPORA, recipe_text
from lmsmith.core.settings import Setting, describe_settings
from lmsmith.corpus.build.clean import CleanConfig
from lmsmith.corpus.build.decontaminate import DecontaminateConfig
from lmsmith.corpus.build.harmful import HarmfulConfig
from lmsmith.corpus.build.language import LanguageConfig, known_languages
from lmsmith.corpus.build.lines import LinesConfig
from lmsmith.corpus.build.minhash import MinHashConfig
from lmsmith.corpus.build.personal import PersonalConfig
from lmsmith.corpus.build.quality import QualityConfig
from lmsmith.corpus.build.spark_session import SparkConfig

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")

Format: TypeAlias = Literal[
    "auto",
    "text",
    "markdown",
    "jsonl",
    "json",
    "csv",
    "tsv",
    "parquet",
    "html",
    "warc",
    "mail",
    "pdf",
]


@dataclass(frozen=True)
class SourceConfig:
    """A source of documents, the table ``[sources.NAME]``."""

    paths: tuple[str, ...]
    """Files, folders and globs, relative to the recipe's folder; URLs that fsspec reads, such as
    ``s3://bucket/key``; or ``package:NAME/PATTERN``, files of an installed Python package."""
    format: Format = "auto"
    """What the files are; auto: by the end of the name, else by how the content begins."""
    text_field: str = "text"
    """Field of rows that holds the text; a list of texts is joined by line ends."""
    id_field: str = "id"
    """Field of rows that holds their name."""
    weight: NonNegativeFloat | None = None
    """Share of the mixture, in any unit, as in GPT-3's 60, 22, 8, 8 and 3; 0 reads nothing of it.
    Without any weights each source is read as often as every other."""
    epochs: NonNegativeFloat | None = None
    """How often the source is read, in the weight's place."""
    curated: bool = False
    """Good text: kept rather than its duplicates in other sources, an example of quality, and not
    filtered by quality."""

    def check(self) -> list[Problem]:
        """No path, an empty one, or both a weight and epochs."""
        if self.weight is not None and self.epochs is not None:
            expected, fix = "the source has a weight already", "leave one of the two out"
            return [Problem("epochs", self.epochs, expected, fix)]
        fix = 'write paths = ["raw/*.txt"]'
        if not self.paths:
            return [Problem("paths", [], "names no file", fix)]
        if not self.text_field:
            return [Problem("text_field", "", "names no field", 'write text_field = "text"')]
        empty = [n for n, path in enumerate(self.paths) if not path.strip()]
        return [Problem(f"paths.{n}", "", "names no file", fix) for n in empty]


@dataclass(frozen=True)
class ReadConfig:
    """How files are read."""

    max_characters: Annotated[int, msgspec.Meta(ge=1000, le=10_000_000)] = 100_000
    """A longer text becomes several documents, cut between paragraphs, lines or words."""
    max_row_mib: Annotated[int, msgspec.Meta(ge=1, le=2_000)] = 64
    """A longer row of JSONL or CSV, or a longer e-mail, is skipped."""
    main_text: bool = True
    """Keep the main text of HTML alone (trafilatura); false: all text, menus and footers too."""
    pdf_seconds: PositiveFloat = 60.0
    """A PDF whose text takes longer is skipped."""
    max_unpacked_times: PositiveInt = 200
    """A compressed file that unpacks to more than so many times its size (and to more than 64 MiB)
    is read no further."""


@dataclass(frozen=True)
class DeduplicateConfig:
    """Which documents are the same as another."""

    exact: bool = True
    """Keep one of documents with equal text: a curated one, else the one with the smallest id."""
    lines: LinesConfig = field(default_factory=LinesConfig)
    """Lines or paragraphs that come again in the corpus."""
    near: MinHashConfig = field(default_factory=MinHashConfig)
    """Documents that are nearly the same."""
    sample: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 300
    """Documents, drawn by a hash, that are compared with all others, so that the report says how
    many near-duplicates were found and whether those that went are any; 0 compares none."""


@dataclass(frozen=True)
class MixConfig:
    """How much of each source is read, by its ``weight`` or ``epochs``."""

    tokens: PositiveInt | None = None
    """Tokens that are to be read in all (the budget); without it enough to read each source with a
    weight once. The table in the result says how often each is read."""


@dataclass(frozen=True)
class ShardsConfig:
    """The tokenizer, and the shards that ``lmsmith run`` reads."""

    tokenizer: str = ""
    """A tokenizer to use: a folder of lmsmith or Hugging Face, a registered model's name, a GGUF
    file. Without it one is trained on the corpus."""
    vocabulary_size: Annotated[int, msgspec.Meta(ge=300, le=1 << 20)] = 32_000
    """Tokens of a tokenizer that is trained here."""
    kind: Literal["bpe", "word_piece"] = "bpe"
    """Kind of a tokenizer that is trained here: ``bpe``, byte-level, for models that write;
    ``word_piece`` for encoders (the stage ``masked_lm``)."""
    lowercase: bool = True
    """With ``word_piece``: letters lose case and accents."""
    tokenizer_mib: PositiveInt = 64
    """Text that the tokenizer is trained on, drawn from the whole corpus."""
    validation: FractionBelowOne = 0.01
    """Share of the documents that is held out, to see when a model overfits."""
    max_validation: NonNegativeInt = 1_000
    """No more documents than these are held out."""
    part_mib: PositiveInt = 64
    """Text of a part of the shards, which a worker holds at a time."""


@dataclass(frozen=True)
class CorpusRecipe:
    """A corpus: sources, the steps in their order, and where the result goes."""

    sources: dict[str, SourceConfig]
    """The sources by name, ``[sources.NAME]`` each."""
    description: str = ""
    """What the corpus is, in a line."""
    out: str = ""
    """The finished corpus, a folder relative to the recipe's; ``corpora/RECIPE`` in the present
    folder by default."""
    seed: int = 0
    """Seed of all that is drawn."""
    engine: Literal["local", "spark"] = "local"
    """local: processes of this machine; spark: Apache Spark, with the same result."""
    workers: NonNegativeInt = 0
    """Processes; 0: one a core. They change the time, not the result."""
    spark: SparkConfig = field(default_factory=SparkConfig)
    """The cluster of ``engine = "spark"``."""
    read: ReadConfig = field(default_factory=ReadConfig)
    """How files are read."""
    clean: CleanConfig = field(default_factory=CleanConfig)
    """How texts are cleaned."""
    language: LanguageConfig = field(default_factory=LanguageConfig)
    """Which languages are kept."""
    personal: PersonalConfig = field(default_factory=PersonalConfig)
    """Which personal data is masked."""
    harmful: HarmfulConfig = field(default_factory=HarmfulConfig)
    """Which documents are removed for their words."""
    quality: QualityConfig = field(default_factory=QualityConfig)
    """Which documents are good enough."""
    deduplicate: DeduplicateConfig = field(default_factory=DeduplicateConfig)
    """Which documents are the same as another."""
    decontaminate: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    """What is removed because tasks ask it."""
    mix: MixConfig = field(default_factory=MixConfig)
    """How much of each source is read."""
    shards: ShardsConfig = field(default_factory=ShardsConfig)
    """The tokenizer and the token shards."""
    name: str = field(default="", metadata=NOT_A_SETTING)
    """That of the recipe's file."""
    folder: str = field(default="", metadata=NOT_A_SETTING)
    """Relative paths begin at this folder, the recipe's."""

    def check(self) -> list[Problem]:
        """No source, or a name that is no folder's."""
        if not self.sources:
            fix = 'write [sources.NAME] with paths = ["raw/*.txt"]'
            return [Problem("sources", {}, "names no source", fix)]
        problems = []
        if "://" in self.out:
            fix = "name a folder, and copy the finished corpus, as in aws s3 sync OUT s3://…"
            problems.append(Problem("out", self.out, "a folder of this machine", fix))
        fix = "use letters, digits, - and _"
        problems += [
            Problem(f"sources.{name}", name, "the name of a source becomes a folder's", fix)
            for name in self.sources
            if not _NAME.fullmatch(name) or name == "tokenizer"
        ]
        weighed = [name for name, each in self.sources.items() if each.weight is not None]
        if weighed:
            expected = f"missing, and {weighed[0]} has a weight"
            problems += [
                Problem(f"sources.{name}.weight", MISSING, expected, "set it, or epochs = 1")
                for name, each in self.sources.items()
                if each.weight is None and each.epochs is None
            ]
        if all(0 in (each.weight, each.epochs) for each in self.sources.values()):
            expected = "nothing is read: every weight or number of epochs is 0"
            problems.append(Problem("sources", sorted(self.sources), expected, "raise one"))
        fixed = all(each.epochs is not None or each.weight == 0 for each in self.sources.values())
        if fixed and self.mix.tokens is not None:
            expected = "the sources' epochs say already how much is read"
            fix = "leave it out, or give a source a weight in place of epochs"
            problems.append(Problem("mix.tokens", self.mix.tokens, expected, fix))
        if self.quality.classifier.enabled and len(self.curated) in (0, len(self.sources)):
            expected = "needs sources of good text and others"
            fix = "set curated = true in the sources of good text"
            problems.append(Problem("quality.classifier.enabled", True, expected, fix))
        return problems

    def missing_files(self) -> list[Problem]:
        """Files that settings beside the sources name, and that are not there."""
        named = {"harmful.words": self.harmful.words}
        expected = "no such file; paths are relative to the recipe's folder"
        return [
            Problem(key, path, expected)
            for key, path in named.items()
            if path and not is_there(beside(self.folder, path))
        ]

    def unknown_languages(self) -> list[Problem]:
        """Languages to keep that no text is ever found to be in."""
        if not (self.language.enabled and self.language.keep):
            return []
        known = known_languages()
        expected = f"not one of the {len(known)} languages that are identified"
        problems = []
        for number, name in enumerate(self.language.keep):
            if name not in known:
                like = ", ".join(sorted(each for each in known if each[0] == name[0]))
                problems.append(
                    Problem(
                        f"language.keep.{number}",
                        name,
                        expected,
                        f"write one of {like}" if like else "",
                    )
                )
        return problems

    @property
    def curated(self) -> tuple[str, ...]:
        """The sources of good text, by name."""
        return tuple(sorted(name for name, each in self.sources.items() if each.curated))

    @property
    def place(self) -> Path:
        """Folder of the finished corpus."""
        if not self.out:
            return Path("corpora") / self.name
        return Path(beside(self.folder, self.out))


def corpus_settings() -> list[Setting]:
    """Every setting of a corpus, under ``corpus.``."""
    return list(describe_settings(CorpusRecipe, "corpus"))


def load_corpus_recipe(file: str | Path, overrides: Sequence[str] = ()) -> CorpusRecipe:
    """Read and check a corpus's recipe.

    Args:
        file: a TOML file, paths in it are relative to its folder; or a shipped one, whose paths
            are relative to the present folder.
        overrides: ``"table.key=value"`` each.

    Raises:
        UserError: no such file, not TOML, or the list of all problems in it.
    """
    name, text = recipe_text(file, CORPORA)
    tables = apply_overrides(parse_toml(text, file), overrides)
    recipe, problems = decode(CorpusRecipe, tables, "")
    if recipe is None:
        raise SettingsError(problems, str(file))
    recipe = replace(recipe, name=name, folder=str(Path(file).parent))
    if problems := recipe.missing_files() + recipe.unknown_languages():
        raise SettingsError(problems, str(file))
    return recipe
