"""Stage: a small model learns from a large one (Hinton et al. 2015; Kim and Rush 2016)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress, islice
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch

from lmsmith.catalogue.reading import read_model
from lmsmith.catalogue.resolve import card_of_sampling, resolve
from lmsmith.core.config import (
    NOT_A_SETTING,
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Problem,
    encode,
)
from lmsmith.core.errors import UserError
from lmsmith.core.files import atomic_write, beside, is_there, read_json
from lmsmith.core.progress import Progress
from lmsmith.corpus.batches import Batch, PretrainingBatches
from lmsmith.corpus.rows import read_conversations, read_documents, rows_of_split
from lmsmith.evaluation.methods.perplexity import TextBits, bits_of_documents, bits_of_replies
from lmsmith.generation.settings import SamplingSettings
from lmsmith.generation.written_texts import write_texts
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.models.presets import PRESETS
from lmsmith.models.shallow import kept_layers, shallow_config, shallow_copy
from lmsmith.prompts.selection import prompt_room, select_prompts
from lmsmith.prompts.sft_rows import SFTBatches, Window
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.stages.pretrain import Source, mixture_shares, pretraining_sources
from lmsmith.stages.sft import demonstration_windows, readable_conversations
from lmsmith.statistics.intervals import bootstrap_ratio
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.distillation import Divergence, Objective
from lmsmith.training.machine import ResolvedMachine, resolve_machine
from lmsmith.training.optimiser import OptimiserConfig, Schedule, learning_rate_factors
from lmsmith.training.student import MatchedStates, train_student
from lmsmith.training.teacher import FixedRows, LiveTeacher, Teacher, TeacherStore

HeldOut = Callable[[Decoder], TextBits]
"""Measures a model on held-out texts."""

TEACHERS = ("sft", "pretrain", "base")
"""The stages whose model teaches where no other is named: the first that the recipe has."""

ALONE = "without_teacher"
"""Folder, and prefix of the metrics, of the same student that learns from the text alone."""

HISTORY = 0.25
"""Share of the context that repeats earlier turns where a conversation is cut."""


@dataclass(frozen=True)
class DistilConfig:
    """Settings of distillation."""

    teacher: str = ""
    """A registered name, or the path of a model; empty takes the recipe's sft, pretrain or base.
    The student has its tokenizer."""
    text: Literal["documents", "demonstrations"] = "documents"
    """What both read: the data stage's plain text, or its conversations, whose replies are
    learnt."""
    student: ModelConfig = field(default_factory=lambda: ModelConfig(2, 128, 2, 256))
    """The student's shape, with random weights; its vocabulary is the teacher's."""
    keep_layers: NonNegativeInt = 0
    """The student is the teacher with so many of its layers, evenly spaced (Sanh et al. 2019,
    section 3); 0 uses ``student``."""
    divergence: Divergence = "forward_kl"
    """``forward_kl``, KL(teacher ‖ student), or ``reverse_kl``, KL(student ‖ teacher)."""
    teacher_weight: Fraction = 0.5
    """α of the loss α T² KL + (1 − α) × next-token loss. 0 learns from the text alone."""
    temperature: PositiveFloat = 1.0
    """T: both distributions are softmax(logits / T) in the KL."""
    top_k: NonNegativeInt = 0
    """The teacher's k likeliest tokens and the mass of all others, stored once and read at each
    step; 0 computes the whole distribution at each step."""
    store: str = ""
    """Folder for what is stored, which later runs use again; empty keeps it until the stage is
    done."""
    written_texts: NonNegativeInt = 0
    """The teacher writes so many texts, and the student learns these: replies to the
    demonstrations' prompts, or documents from their beginnings on. 0 uses the data's own text."""
    writing_temperature: NonNegativeFloat = 1.0
    """Temperature of the teacher's texts; 0 takes the likeliest token."""
    max_new_tokens: PositiveInt = 128
    """Longest text that the teacher writes, in tokens."""
    prompt_tokens: PositiveInt = 16
    """Tokens of a document that the teacher continues; most tokens of a prompt are what is left
    of the context."""
    tokens: PositiveInt = 1_000_000
    """Tokens to train on in all, padding included; more than there are means several passes."""
    batch_tokens: PositiveInt = 8_192
    """Tokens of an update; a multiple of the context."""
    max_length: NonNegativeInt = 0
    """Tokens of a row; 0 allows what both models' contexts allow."""
    micro_batch_size: NonNegativeInt = 0
    """Rows computed at a time, 0 for a whole batch."""
    dropout: FractionBelowOne = 0.0
    """Dropout of the student."""
    optimiser: OptimiserConfig = field(default_factory=lambda: OptimiserConfig(learning_rate=1e-3))
    """The optimiser of the student."""
    schedule: Schedule = "cosine"
    """Course of the learning rate after the warm-up."""
    warmup_steps: NonNegativeInt = 20
    """Updates over which the learning rate rises."""
    final_lr_fraction: Fraction = 0.05
    """Factor of the peak learning rate at the last update."""
    validations: PositiveInt = 6
    """How often the loss on held-out text is measured; the weights with the lowest are kept."""
    validation_texts: PositiveInt = 64
    """Held-out documents or conversations that are read each time."""
    test_texts: Annotated[int, msgspec.Meta(ge=2)] = 200
    """Texts of the test split that all models are measured on at the end."""
    compare: bool = True
    """The same student also learns from the data's own text alone, for as many steps, and both are
    measured."""
    folder: str = field(default="", metadata=NOT_A_SETTING)
    """Relative paths begin at this folder, the recipe's."""

    @classmethod
    def expand(cls, table: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write ``student.preset`` out; the keys beside it override it."""
        student = table.get("student")
        if not isinstance(student, Mapping) or str(student.get("preset")) not in PRESETS:
            return table
        shape = encode(PRESETS[student["preset"]].config)
        return {**table, "student": {**shape, "vocabulary_size": 0, **student}}

    def check(self) -> list[Problem]:
        """An unknown preset, an encoder, and a store without anything in it."""
        problems = []
        if self.store and not self.top_k:
            fix = "set top_k, e.g. 32: all of a vocabulary would be too large to keep"
            problems.append(Problem("store", self.store, "empty where top_k is 0", fix))
        if self.student.preset not in ("", *PRESETS):
            expected, fix = f"one of {', '.join(PRESETS)}", "`lmsmith models presets` shows them"
            problems.append(Problem("student.preset", self.student.preset, expected, fix))
        if self.student.is_encoder and not self.keep_layers:
            problems.append(Problem("student", "an encoder's shape", "a decoder's"))
        return problems

    def external_files(self) -> list[str]:
        return [str(resolve(self.place(self.teacher)).path)] if self.teacher else []

    def place(self, word: str) -> str:
        """The path that a word means beside the recipe, or the word."""
        path = beside(self.folder, word)
        return path if is_there(path) else word

    def objective(self) -> Objective:
        return Objective(self.divergence, self.temperature, self.teacher_weight)


@dataclass(frozen=True)
class Material:
    """Rows to learn from, and the bytes of text for each target token."""

    rows: FixedRows
    bytes_per_token: float


def run(config: DistilConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Train the student with its teacher, then without, measure both, save ``model/``."""
    machine = resolve_machine(out.machine)
    read = read_model(config.place(config.teacher) if config.teacher else teacher_of(inputs))
    teacher, tokenizer = read.decoder.requires_grad_(False), read.tokenizer
    lesson = Lesson(config, inputs["data"], teacher, tokenizer, machine, out)
    own_text = lesson.own_text()
    material = lesson.written_text() if config.written_texts else own_text
    source = lesson.source(material.rows)
    student = lesson.student()
    metrics = lesson.train(student, material, source, config.objective(), out)
    metrics |= {
        "parameters": float(student.config.parameters),
        "teacher_parameters": float(teacher.config.parameters),
        "rows": float(material.rows.count),
        "passes": lesson.steps * lesson.batch_rows / material.rows.count,
    }
    if isinstance(source, TeacherStore):
        metrics["stored_bytes"] = float(source.bytes)
    models = {"": student, "teacher_": teacher}
    card: dict[str, Any] = {"stage": out.name, "parents": [read.source.name]}
    card |= {**card_of_sampling(read.source), "settings": encode(config)}
    if config.compare:
        aside = replace(out, path=out.checkpoints / ALONE)
        alone = lesson.student()
        lesson.train(alone, own_text, None, replace(config.objective(), teacher_weight=0), aside)
        models[f"{ALONE}_"] = alone
        save_model(out / ALONE / "model", alone, tokenizer, {**card, "parents": []})
        curve = aside.metrics_log().path.read_bytes()
        atomic_write(out / ALONE / "metrics.jsonl", curve)
    metrics |= compare(models, lesson.test(), out.progress)
    save_model(out / "model", student, tokenizer, {**card, "metrics": metrics})
    return metrics


def teacher_of(inputs: Mapping[str, Path]) -> Path:
    """The model of the recipe's stage that teaches."""
    found = next((inputs[name] for name in TEACHERS if name in inputs), None)
    if found is None:
        fix = "set distil.teacher, or add [sft], [pretrain] or [base]"
        raise UserError("the recipe has no teacher", fix)
    return found / "model"


class Lesson:
    """What a student reads, learns and is measured by; the same with a teacher and without.

    Raises:
        UserError: rows longer than a context, or a batch that is not whole rows.
    """

    def __init__(
        self,
        config: DistilConfig,
        data: Path,
        teacher: Decoder,
        tokenizer: Tokenizer,
        machine: ResolvedMachine,
        out: StageFolder,
    ) -> None:
        self.config, self.data, self.machine, self.out = config, data, machine, out
        self.teacher, self.tokenizer = teacher, tokenizer
        self.shape = student_shape(config, teacher.config)
        self.context = min(self.shape.context, teacher.config.context)
        self.context = min(config.max_length or self.context, self.context)
        if config.batch_tokens % self.context:
            raise UserError(
                f"{out.name}.batch_tokens = {config.batch_tokens} is not a multiple of a row's "
                f"{self.context} tokens",
                f"set it to {max(1, round(config.batch_tokens / self.context)) * self.context}",
            )
        self.batch_rows = config.batch_tokens // self.context
        self.steps = max(1, round(config.tokens / config.batch_tokens))
        self.held_out = self._measure("validation", config.validation_texts)
        if self.held_out is None:
            out.warn(
                "no text is held out (data.splits.validation), so nothing says whether it overfits"
            )

    def student(self) -> Decoder:
        """The student before it learns."""
        if self.config.keep_layers:
            student = shallow_copy(self.teacher, self.config.keep_layers)
        else:
            student = Decoder(self.shape)
            seed = derive_seed(self.out.seed, "weights")
            student.initialise(torch.Generator().manual_seed(seed))
        student.set_dropout(self.config.dropout)
        return student

    def own_text(self) -> Material:
        """The rows of the data's own documents or demonstrations."""
        if self.config.text == "demonstrations":
            path = self.data / "demonstrations.jsonl"
            found = demonstration_windows(path, self.tokenizer, self.context, HISTORY, self.out)
            return self._windows(found[0])
        sources = self._sources()
        total = sum(source.shards.total_tokens for source in sources.values())
        size = sum(source.text_bytes for source in sources.values())
        shares = mixture_shares(sources, read_json(self.data / "mixture.json"))
        shards = [source.shards for source in sources.values()]
        seed = derive_seed(self.out.seed, "rows")
        batches = PretrainingBatches(shards, shares, self.context, 1, seed)
        return self._rows(batches.batch, -(-total // self.context), size / total)

    def _sources(self) -> dict[str, Source]:
        """The data's documents, and those of a finished corpus, as tokens."""
        return pretraining_sources(self.data, self.tokenizer, self.out.checkpoints / "shards")

    def _beginnings(self, kept: int) -> Iterator[tuple[str, list[int]]]:
        """(id, first tokens) of each document: of the data's own, or of a corpus's sources in
        turn."""
        start, path = list(self.tokenizer.document_start), self.data / "documents.jsonl"
        if path.is_file():
            for document in rows_of_split(read_documents, path):
                yield document.id, (start + self.tokenizer.encode(document.text))[:kept]
            return
        sources = {name: source.shards for name, source in self._sources().items()}
        for number in range(max(map(len, sources.values()))):
            for name, shards in sources.items():
                if number < len(shards):
                    first, end = shards.offsets[number : number + 2].tolist()
                    tokens = shards.tokens[first : min(first + kept, end - 1)]
                    yield f"{name}:{number}", tokens.tolist()

    def written_text(self) -> Material:
        """Rows of texts that the teacher writes; all of them are in ``written.jsonl``."""
        tokenizer, config = self.tokenizer, self.config
        room = prompt_room(0, config.max_new_tokens, self.context)
        if room < 1:
            fix = f"lower {self.out.name}.max_new_tokens below {self.context}"
            raise UserError("the teacher's texts leave no room for what they continue", fix)
        if config.text == "demonstrations":
            conversations = read_conversations(self.data / "demonstrations.jsonl")
            found = select_prompts(
                conversations, tokenizer, room, most=config.written_texts, per_conversation=2
            )
            prompts, stops = [(each.id, each.tokens) for each in found], tokenizer.stop_tokens
        else:
            beginnings = self._beginnings(min(room, config.prompt_tokens))
            prompts = list(islice(beginnings, config.written_texts))
            stops = (tokenizer.end_of_text,)
        if not prompts:
            fix = "give the data stage more text, or raise the context"
            raise UserError("there is nothing that the teacher could continue", fix)
        if len(prompts) < config.written_texts:
            self.out.warn(f"the teacher writes {len(prompts):,} texts: there are no more prompts")
        settings = SamplingSettings(
            config.max_new_tokens,
            config.writing_temperature,
            stop_tokens=stops,
            seed=derive_seed(self.out.seed, "written texts"),
        )
        path = self.out / "written.jsonl"
        texts = write_texts(
            path, self.teacher, tokenizer, prompts, settings, self.machine, self.out.progress
        )
        return self._windows([text.window() for text in texts])

    def _windows(self, windows: Sequence[Window]) -> Material:
        batches = SFTBatches(windows, self.context, 1, derive_seed(self.out.seed, "rows"))
        learnt = (t for tokens, is_target in windows for t in compress(tokens, is_target))
        size = sum(len(self.tokenizer.token_bytes(token)) for token in learnt)
        return self._rows(batches.batch, batches.rows_per_epoch, size / batches.targets_per_epoch)

    def _rows(self, row: Callable[[int], Batch], count: int, bytes_per_token: float) -> Material:
        needed = min(count, self.steps * self.batch_rows)
        order = derive_seed(self.out.seed, "batches")
        return Material(FixedRows(row, needed, self.batch_rows, order), max(1e-9, bytes_per_token))

    def source(self, rows: FixedRows) -> Teacher | None:
        """The teacher's distributions for these rows; None where they have no weight."""
        config, vocabulary = self.config, self.teacher.config.vocabulary_size
        if not config.teacher_weight:
            return None
        live = LiveTeacher(self.teacher, config.temperature, self.machine)
        if not 0 < config.top_k < vocabulary:
            return live
        place = Path(beside(config.folder, config.store)) if config.store else None
        folder = place or self.out.checkpoints / "teacher"
        return TeacherStore(folder, rows, live, config.top_k, self.out.progress)

    def train(
        self,
        student: Decoder,
        material: Material,
        source: Teacher | None,
        objective: Objective,
        out: StageFolder,
        matched: MatchedStates | None = None,
    ) -> dict[str, float]:
        """Train a student in place; its metrics."""
        config, reads = self.config, isinstance(source, LiveTeacher) or matched is not None
        flops = self.teacher.config.training_flops_per_token(self.context) / 3
        metrics = train_student(
            student,
            source,
            material.rows.batch,
            objective,
            config.optimiser,
            learning_rate_factors(config, self.steps),
            self.machine,
            out,
            steps=self.steps,
            micro_batch_size=config.micro_batch_size,
            bytes_per_token=material.bytes_per_token,
            teacher_flops=flops if reads else 0.0,
            held_out_bits_per_byte=(
                None if self.held_out is None else partial(_per_byte, self.held_out, student)
            ),
            validations=config.validations,
            matched=matched,
        )
        student.set_dropout(0.0)
        student.eval()
        return metrics

    def test(self) -> HeldOut | None:
        """Measures a model on the test split; on validation where there is none."""
        return self._measure("test", self.config.test_texts) or self.held_out

    def _measure(self, part: str, most: int) -> HeldOut | None:
        """Measures a model on a split of the data; None where it is empty."""
        if self.config.text == "demonstrations":
            path, room = self.data / f"{part}.jsonl", self.context
            talks = readable_conversations(path, self.tokenizer, room, most)
            replies = partial(
                bits_of_replies,
                tokenizer=self.tokenizer,
                conversations=talks,
                machine=self.machine,
                context=room,
            )
            return replies if talks else None
        rows = rows_of_split(read_documents, self.data / f"{part}_documents.jsonl")
        texts = [document.text for document in islice(rows, most)]
        documents = partial(
            bits_of_documents,
            tokenizer=self.tokenizer,
            texts=texts,
            machine=self.machine,
            context=self.context,
        )
        return documents if texts else None


def _per_byte(measure: HeldOut, decoder: Decoder) -> float:
    return measure(decoder).per_byte


def student_shape(config: DistilConfig, teacher: ModelConfig) -> ModelConfig:
    """The student's shape, with the teacher's vocabulary."""
    if config.keep_layers:
        return shallow_config(teacher, kept_layers(teacher.layers, config.keep_layers))
    return replace(config.student, vocabulary_size=teacher.vocabulary_size)


def compare(
    models: Mapping[str, Decoder], measure: HeldOut | None, progress: Progress
) -> dict[str, float]:
    """Bits per byte of each model on the same texts, and what the teacher gained, with intervals.

    ``gain_bits_per_byte`` is the student's without teacher less the one's with; texts are drawn
    again together, so that it is paired.
    """
    if measure is None:
        return {}
    found: dict[str, TextBits] = {}
    progress.begin("measuring", len(models), "models")
    for prefix, model in models.items():
        found[prefix] = measure(model)
        progress.update(len(found))
    progress.end()
    metrics = {"test_texts": float(len(found[""].bits))}
    for prefix, each in found.items():
        metrics |= bootstrap_ratio(each.bits, each.bytes).named(f"{prefix}test_bits_per_byte")
    if (alone := found.get(f"{ALONE}_")) is not None:
        gained = [a - b for a, b in zip(alone.bits, found[""].bits, strict=True)]
        metrics |= bootstrap_ratio(gained, alone.bytes).named("gain_bits_per_byte")
    return metrics
