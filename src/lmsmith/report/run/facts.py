"""What the page says in words and tables: the run, its data, its machine, what each stage took."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lmsmith.core.files import growing_rows, read_json
from lmsmith.report import numbers
from lmsmith.report.run.records import (
    Row,
    RunRecord,
    StageRecord,
    as_number,
    count_parameters,
)
from lmsmith.report.run.series import pick
from lmsmith.report.run.words import stage_title
from lmsmith.runs.metrics_log import read_metrics

DATA_FILES = (
    ("documents", "documents to pretrain on"),
    ("demonstrations", "demonstrations"),
    ("comparisons", "conversations to rank replies for"),
    ("prompts", "prompts for PPO"),
    ("judge", "conversations for the judge alone"),
    ("validation", "for validation"),
    ("test", "for the test"),
)


_LARGEST_FILE_TO_COUNT = 200_000_000


_ROWS_TO_ASK_FOR_LABELERS = 10_000


MODELS = ("pretrain", "base", "sft", "ppo")


@dataclass(frozen=True)
class Warned:
    """A warning that a stage said while it ran."""

    stage: str
    step: int | None
    text: str


@dataclass(frozen=True)
class Comparison:
    """One measure of every model side by side."""

    name: str
    values: tuple[str, ...]
    hint: str


@dataclass(frozen=True)
class Effort:
    """What a stage took: text for each column of the table of times and memory."""

    title: str
    stage: str
    wall: str
    memory: str
    speed: str
    share_of_peak: str
    machine: str


def describe_run(run: RunRecord) -> str:
    """What was trained and how far it came, in one or two sentences."""
    finished = {name for name, stage in run.stages.items() if stage.finished}
    parameters = _parameters(run)
    subject = (
        "A GPT" if parameters is None else f"A GPT of {numbers.large_count(parameters)} parameters"
    )
    steps = [
        words
        for stage, words in (
            ("pretrain", "pretrained on raw text"),
            ("base", "made before"),
            ("sft", "fine-tuned on demonstrations"),
            ("ppo", "aligned with PPO to a reward model"),
        )
        if stage in finished
    ]
    total = sum(stage.wall_seconds or 0.0 for stage in run.stages.values())
    cores = as_number(run.hardware.get("cores"))
    took = f" in {numbers.duration(total)}" if total else ""
    took += f" on {cores:.0f} core{'s' if cores != 1 else ''}" if took and cores else ""
    made = f"{subject}, {_listed(steps)}{took}." if steps else "Nothing has been trained yet."
    expected = [name for name in run.stages if run.expects(name)]
    missing = [_inline_title(name) for name in expected if name not in finished]
    if not missing:
        return made
    return f"{made} Not done yet: {_listed(missing)}."


def name_facts(run: RunRecord) -> list[tuple[str, str]]:
    """Name and text of what is said under the title: recipe, model, data, machine."""
    facts = [("Recipe", run.recipe_name)]
    seed = as_number(run.recipe.get("seed"))
    if seed is not None:
        facts[0] = ("Recipe", f"{run.recipe_name}, seed {seed:.0f}")
    first = next((name for name in MODELS if run.stages[name].finished), MODELS[0])
    config = _json_table(run.folder / first / "model" / "config.json")
    shape = config.get("model")
    described = [
        f"{name.replace('_', ' ')} {value:,}"
        for name, value in (shape if isinstance(shape, dict) else config).items()
        if isinstance(value, int) and not isinstance(value, bool) and value
    ]
    if described:
        facts.append(("Model", ", ".join(described)))
    data = _data_counts(run)
    if data:
        facts.append(("Data", ", ".join(f"{count:,} {words}" for words, count in data)))
    machine = dict(describe_machine(run.hardware))
    known = [
        f"{machine[name]}{unit}"
        for name, unit in (("Processor", ""), ("Cores", " cores"), ("Memory", " of memory"))
        if name in machine
    ]
    if known:
        facts.append(("Machine", ", ".join(known)))
    return facts


def _data_counts(run: RunRecord) -> list[tuple[str, int]]:
    """(words, rows) of each file of the data stage, by its metrics or else by counting lines."""
    stage, counts = run.stages["data"], []
    for name, words in DATA_FILES:
        known = as_number(stage.metrics.get(f"conversations.{name}"))
        if known is None:
            known = as_number(stage.metrics.get(name))
        path = stage.folder / f"{name}.jsonl"
        if known is None and path.is_file() and path.stat().st_size < _LARGEST_FILE_TO_COUNT:
            with path.open("rb") as file:
                known = sum(1 for line in file if line.strip())
        if known:
            counts.append((words, int(known)))
    return counts


def _parameters(run: RunRecord) -> float | None:
    for stage in MODELS:
        record = run.stages[stage]
        known = as_number(record.metrics.get("parameters"))
        if known is None:
            known = as_number(_json_table(record.folder / "model" / "card.json").get("parameters"))
        if known is None:
            known = count_parameters(record.folder / "model")
        if known is not None:
            return known
    return None


def compared_models(tables: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """The language models there are numbers of, in the order of their stages."""
    return [name for name in MODELS if tables.get(name)]


def compare_models(tables: Mapping[str, Mapping[str, float | None]]) -> list[Comparison]:
    """The measures that all language models share, those that have been measured."""
    rows, models = [], compared_models(tables)
    for name, metric, decimals, hint in (
        (
            "Bits per byte of unseen text",
            "bits_per_byte",
            3,
            "lower is better; a rise is the alignment tax",
        ),
        ("Perplexity of the person's reply", "reply_perplexity", 1, "lower is better"),
        ("Tokens per reply", "reply_tokens", 1, "a large change needs an explanation"),
    ):
        values = [tables.get(stage, {}).get(metric) for stage in models]
        if any(value is not None for value in values):
            texts = tuple(numbers.fixed(value, decimals) for value in values)
            rows.append(Comparison(name, texts, hint))
    return rows


def find_labeler(run: RunRecord, stage: str) -> str | None:
    """Who made a stage's rankings: by its settings, else by the names in its rows."""
    named = run.stages[stage].settings.get("labeler")
    if isinstance(named, str) and named:
        return named
    path = run.stages[stage].folder / "train.jsonl"
    if not path.is_file():
        return None
    labelers: dict[str, None] = {}
    with path.open("rb") as file:
        for line in itertools.islice(file, _ROWS_TO_ASK_FOR_LABELERS):
            try:
                row = json.loads(line)
            except ValueError:
                break
            if isinstance(row, dict) and isinstance(row.get("labeler"), str):
                labelers.setdefault(row["labeler"])
    known = [name for name in labelers if name]
    if len(known) > 4:
        return f"{', '.join(known[:4])} and {len(known) - 4} more"
    return ", ".join(known) or None


def read_warnings(run: RunRecord) -> list[Warned]:
    """What stages warned of, from ``warnings`` in stage.json and from warnings.jsonl."""
    found: dict[Warned, None] = {}
    for stage in run.stages.values():
        said = stage.manifest.get("warnings")
        rows: list[object] = [*said] if isinstance(said, list) else []
        rows += growing_rows(stage.folder / "warnings.jsonl")
        for row in rows:
            table = row if isinstance(row, dict) else {"text": row}
            text = table.get("text") or table.get("message") or table.get("warning")
            step = as_number(table.get("step"))
            if text:
                whole = None if step is None else int(step)
                found.setdefault(Warned(stage_title(stage.name), whole, str(text)))
    return list(found)


def measure_efforts(run: RunRecord) -> list[Effort]:
    efforts = []
    for stage in run.stages.values():
        if stage.wall_seconds is None:
            continue
        rows = read_metrics(stage.folder / "metrics.jsonl")
        speed = _median(pick(rows, "tokens_per_second").y)
        if speed is None:
            speed = _median(pick(rows, "rollout_tokens_per_second").y)
        efforts.append(
            Effort(
                stage_title(stage.name),
                stage.name,
                numbers.duration(stage.wall_seconds),
                numbers.size(stage.peak_memory_bytes),
                "" if speed is None else f"{speed:,.0f}",
                numbers.percent(share, 0)
                if (share := _median(pick(rows, "share_of_peak").y)) is not None
                else "",
                _machine(stage) if rows else "",
            )
        )
    return efforts


def _machine(stage: StageRecord) -> str:
    """Precision, and whether the model was compiled where the stage says so."""
    precision = stage.machine.get("precision")
    parts = [str(precision)] if precision else []
    compiled = stage.metrics.get("compiled", stage.machine.get("compiled"))
    if isinstance(compiled, bool | int | float):
        parts.append("compiled" if compiled else "eager")
    return ", ".join(parts)


def describe_machine(hardware: Row) -> list[tuple[str, str]]:
    """Name and text of each thing known of the machine, the telling ones first."""
    names = {
        "cpu": "Processor",
        "cores": "Cores",
        "memory_bytes": "Memory",
        "memory": "Memory",
        "flags": "Instructions",
        "platform": "Platform",
        "python": "Python",
    }
    rows = []
    for key in [*names, *(key for key in hardware if key not in names)]:
        value = hardware.get(key)
        if value in (None, "", []):
            continue
        text = _plain(value)
        amount = as_number(value)
        if key in ("memory_bytes", "memory") and amount is not None:
            text = numbers.size(amount)
        rows.append((names.get(key, key.replace("_", " ")), text))
    return rows


def matrix_peak(run: RunRecord) -> list[tuple[str, str]]:
    """The measured peak of matrix products that shares of peak refer to."""
    for stage in reversed(list(run.stages.values())):
        peak = as_number(stage.machine.get("peak_gflops"))
        if peak is not None:
            precision = stage.machine.get("precision", "")
            return [("Matrix peak", f"{peak:,.0f} GFLOP/s measured in {precision}")]
    return []


def flatten(table: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Settings as (dotted key, text), tables inside tables opened up."""
    rows: list[tuple[str, str]] = []
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            rows.extend(flatten(value, f"{prefix}{key}."))
        else:
            rows.append((f"{prefix}{key}", _plain(value)))
    return rows


def _plain(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return ", ".join(_plain(item) for item in value)
    return json.dumps(value, ensure_ascii=False)


def _json_table(path: Path) -> Row:
    if not path.is_file():
        return {}
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def _median(values: Iterable[float]) -> float | None:
    ordered = sorted(values)
    return ordered[len(ordered) // 2] if ordered else None


def _inline_title(stage: str) -> str:
    """A stage's title in the middle of a sentence: capitals only where they are an acronym's."""
    title = stage_title(stage)
    return title if title[:2].isupper() else title[0].lower() + title[1:]


def _listed(words: list[str]) -> str:
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]
