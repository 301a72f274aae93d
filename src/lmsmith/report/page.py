"""The report: one HTML file that holds everything and asks nothing of the network."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from lmsmith.core.files import atomic_write, read_json
from lmsmith.core.metrics import read_metrics
from lmsmith.report import numbers
from lmsmith.report.figures import draw_figures, draw_time
from lmsmith.report.gains import describe_gains, key_figures
from lmsmith.report.metrics import stage_tables
from lmsmith.report.records import (
    Row,
    RunRecord,
    as_number,
    count_parameters,
    read_rows,
    read_run,
)
from lmsmith.report.samples import SHOWN_OPEN, average_scores, read_exchanges, read_practice
from lmsmith.report.series import pick
from lmsmith.report.toml import to_toml
from lmsmith.report.words import GLOSSARY, REPLIERS, STAGE_WORDS, labeler_sentence

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


def build_report(run_folder: Path) -> Path:
    """Write ``report.html`` into ``run_folder``, whole or not at all, and return its path.

    The page is a function of the run folder: built twice, it is the same to the byte.

    Raises:
        UserError: ``run_folder`` is not a run folder, a file in it is damaged, or the page
            cannot be written.
    """
    run = read_run(run_folder)
    path = run.folder / "report.html"
    atomic_write(path, render_page(run))
    return path


def render_page(run: RunRecord) -> str:
    """The page's HTML."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lmsmith.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        duration=numbers.duration,
        size=numbers.size,
        number=numbers.number,
        signed=numbers.signed,
    )
    return _printable(environment.get_template("page.html.j2").render(_context(run)))


def _context(run: RunRecord) -> dict[str, Any]:
    tables = stage_tables(run)
    exchanges = read_exchanges(run)
    time = draw_time(run)
    return {
        "run": run,
        "lede": describe_run(run),
        "description": str(run.recipe.get("description") or ""),
        "facts": _facts(run),
        "figures_on_top": key_figures(tables),
        "gains": describe_gains(run, tables),
        "outdated": [s for s in run.stages.values() if s.status == "outdated"],
        "titles": {name: words.title for name, words in STAGE_WORDS.items()},
        "compared": [REPLIERS[name] for name in _MODELS],
        "comparisons": _comparisons(tables),
        "labeler": labeler_sentence(_labeler(run)) if "rankings" in tables else "",
        "judged": "judge" in tables or "win_rate" in tables.get("ppo", {}),
        "groups": draw_figures(run),
        "averages": average_scores(run),
        "exchanges": exchanges[:SHOWN_OPEN],
        "folded_exchanges": exchanges[SHOWN_OPEN:],
        "practice": read_practice(run),
        "warnings": _warnings(run),
        "settings": [
            (_title(stage.name), stage.name, _flat(stage.settings))
            for stage in run.stages.values()
            if stage.settings
        ],
        "time": time,
        "efforts": _efforts(run),
        "total_seconds": sum(stage.wall_seconds or 0.0 for stage in run.stages.values()),
        "hardware": _hardware(run.hardware),
        "versions": [(k, v) for k, v in _flat(run.versions) if k not in run.hardware],
        "glossary": GLOSSARY,
        "toml": to_toml({k: v for k, v in run.recipe.items() if k in _recipe_keys(run)}),
        "metrics": [(name, _title(name), table) for name, table in tables.items() if table],
    }


_MODELS = ("pretrain", "sft", "ppo")


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
    expected = [name for name in run.stages if _expected(run, name)]
    missing = [_inline_title(name) for name in expected if name not in finished]
    if not missing:
        return made
    return f"{made} Not done yet: {_listed(missing)}."


def _expected(run: RunRecord, stage: str) -> bool:
    """Whether the recipe names the stage; where no recipe is known every stage is expected."""
    named = [name for name in STAGE_WORDS if name in _stage_settings(run)]
    return stage in named if named else True


def _stage_settings(run: RunRecord) -> Row:
    stages = run.recipe.get("stages")
    return stages if isinstance(stages, dict) else run.recipe


def _recipe_keys(run: RunRecord) -> set[str]:
    return {"description", "seed", "machine", *run.stages}


def _parameters(run: RunRecord) -> float | None:
    for stage in ("pretrain", "sft", "ppo"):
        record = run.stages[stage]
        known = as_number(record.metrics.get("parameters"))
        if known is None:
            known = as_number(_json_table(record.folder / "model" / "card.json").get("parameters"))
        if known is None:
            known = count_parameters(record.folder / "model")
        if known is not None:
            return known
    return None


def _facts(run: RunRecord) -> list[tuple[str, str]]:
    """Name and text of what is said under the title: recipe, model, data, machine."""
    facts = [("Recipe", run.recipe_name)]
    seed = as_number(run.recipe.get("seed"))
    if seed is not None:
        facts[0] = ("Recipe", f"{run.recipe_name}, seed {seed:.0f}")
    shape = _json_table(run.folder / "pretrain" / "model" / "config.json")
    described = [
        f"{name.replace('_', ' ')} {value:,}"
        for name, value in shape.items()
        if isinstance(value, int) and not isinstance(value, bool)
    ]
    if described:
        facts.append(("Model", ", ".join(described)))
    data = _data_counts(run)
    if data:
        facts.append(("Data", ", ".join(f"{count:,} {words}" for words, count in data)))
    machine = dict(_hardware(run.hardware))
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
        known = as_number(stage.metrics.get(name))
        path = stage.folder / f"{name}.jsonl"
        if known is None and path.is_file() and path.stat().st_size < _LARGEST_FILE_TO_COUNT:
            with path.open("rb") as file:
                known = sum(1 for line in file if line.strip())
        if known:
            counts.append((words, int(known)))
    return counts


def _comparisons(tables: Mapping[str, Mapping[str, float | None]]) -> list[Comparison]:
    """The measures that all three language models share, those that have been measured."""
    rows = []
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
        values = [tables.get(stage, {}).get(metric) for stage in _MODELS]
        if any(value is not None for value in values):
            texts = tuple(numbers.fixed(value, decimals) for value in values)
            rows.append(Comparison(name, texts, hint))
    return rows


def _labeler(run: RunRecord) -> str | None:
    """The labeler's name from the settings of the rankings, else from their first row."""
    named = run.stages["rankings"].settings.get("labeler")
    if isinstance(named, str) and named:
        return named
    for path in (run.folder / "data" / "rankings.jsonl", run.folder / "rankings" / "train.jsonl"):
        if path.is_file():
            with path.open("rb") as file:
                first = file.readline()
            try:
                row = json.loads(first)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("labeler"), str):
                return str(row["labeler"])
    return None


def _warnings(run: RunRecord) -> list[Warned]:
    """What stages warned of, from ``warnings`` in stage.json and from warnings.jsonl."""
    found: dict[Warned, None] = {}
    for stage in run.stages.values():
        said = stage.manifest.get("warnings")
        rows: list[object] = [*said] if isinstance(said, list) else []
        rows += read_rows(stage.folder / "warnings.jsonl", growing=True)
        for row in rows:
            table = row if isinstance(row, dict) else {"text": row}
            text = table.get("text") or table.get("message") or table.get("warning")
            step = as_number(table.get("step"))
            if text:
                whole = None if step is None else int(step)
                found.setdefault(Warned(_title(stage.name), whole, str(text)))
    return list(found)


def _efforts(run: RunRecord) -> list[Effort]:
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
                _title(stage.name),
                stage.name,
                numbers.duration(stage.wall_seconds),
                numbers.size(stage.peak_memory_bytes),
                "" if speed is None else f"{speed:,.0f}",
                numbers.percent(share, 0)
                if (share := _median(pick(rows, "share_of_peak").y)) is not None
                else "",
                _machine(stage.machine),
            )
        )
    return efforts


def _machine(machine: Row) -> str:
    parts = [str(machine["precision"])] if machine.get("precision") else []
    if isinstance(machine.get("compiled"), bool):
        parts.append("compiled" if machine["compiled"] else "eager")
    return ", ".join(parts)


def _hardware(hardware: Row) -> list[tuple[str, str]]:
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


def _flat(table: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Settings as (dotted key, text), tables inside tables opened up."""
    rows: list[tuple[str, str]] = []
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            rows.extend(_flat(value, f"{prefix}{key}."))
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


def _title(stage: str) -> str:
    return STAGE_WORDS[stage].title if stage in STAGE_WORDS else stage


def _inline_title(stage: str) -> str:
    """A stage's title in the middle of a sentence: capitals only where they are an acronym's."""
    title = _title(stage)
    return title if title[:2].isupper() else title[0].lower() + title[1:]


def _listed(words: list[str]) -> str:
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]


_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def _printable(html: str) -> str:
    """Characters that HTML or UTF-8 cannot hold, shown as the replacement character."""
    return _UNPRINTABLE.sub("\ufffd", html)
