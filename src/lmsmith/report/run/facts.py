"""Words and tables of the page: the run, its data, its machine, each stage's time and memory."""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Mapping
from pathlib import Path

from lmsmith.core.files import growing_rows, read_json
from lmsmith.report import numbers
from lmsmith.report.drawing import pick
from lmsmith.report.numbers import as_number
from lmsmith.report.run.records import Row, RunRecord, StageRecord, as_table, count_parameters
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

MODELS = ("pretrain", "base", "sft", "ppo")

_LARGEST_FILE_TO_COUNT = 200_000_000
_ROWS_TO_ASK_FOR_LABELERS = 10_000


def describe_run(run: RunRecord) -> str:
    """The trained model and the stages still to come, in one or two sentences."""
    parameters = _parameters(run)
    subject = "A Transformer" if run.stages["translate"].finished else "A GPT"
    if parameters is not None:
        subject += f" of {numbers.large_count(parameters)} parameters"
    does = {
        "pretrain": "pretrained on raw text",
        "masked_lm": "an encoder beside it that fills masks",
        "base": "made before",
        "translate": "trained to translate",
        "finetune": "fine-tuned on labelled examples",
        "sft": "fine-tuned on demonstrations",
        "distil": "distilled into a smaller one",
        "emulator": "with layers left out for offsite-tuning",
        "offsite": "whose first and last layers are tuned",
        "ppo": "aligned with PPO to a reward model",
    }
    steps = [words for stage, words in does.items() if run.stages[stage].finished]
    total = sum(stage.wall_seconds or 0.0 for stage in run.stages.values())
    cores = as_number(run.hardware.get("cores"))
    took = f" in {numbers.duration(total)}" if total else ""
    took += f" on {cores:.0f} core{'s' if cores != 1 else ''}" if took and cores else ""
    made = f"{subject}, {_listed(steps)}{took}." if steps else "Nothing has been trained yet."
    missing = [
        _inline_title(name)
        for name, stage in run.stages.items()
        if run.expects(name) and not stage.finished
    ]
    return f"{made} Not done yet: {_listed(missing)}." if missing else made


def name_facts(run: RunRecord) -> list[tuple[str, str]]:
    """Name and text of each fact under the title: recipe, model, data, machine."""
    seed = as_number(run.recipe.get("seed"))
    recipe = run.recipe_name + (f", seed {seed:.0f}" if seed is not None else "")
    first = next((name for name in MODELS if run.stages[name].finished), MODELS[0])
    config = _json_table(run.folder / first / "model" / "config.json")
    model = [
        f"{name.replace('_', ' ')} {value:,}"
        for name, value in (as_table(config.get("model")) or config).items()
        if isinstance(value, int) and not isinstance(value, bool) and value
    ]
    machine = dict(describe_machine(run.hardware))
    known = [
        f"{machine[name]}{unit}"
        for name, unit in (("Processor", ""), ("Cores", " cores"), ("Memory", " of memory"))
        if name in machine
    ]
    data = [f"{count:,} {words}" for words, count in _data_counts(run)]
    lists = (("Recipe", [recipe]), ("Model", model), ("Data", data), ("Machine", known))
    return [(name, ", ".join(parts)) for name, parts in lists if parts]


def _data_counts(run: RunRecord) -> list[tuple[str, int]]:
    """(words, rows) of each file of the data stage, by its metrics or else by counting lines."""
    stage, counts = run.stages["data"], []
    for name, words in DATA_FILES:
        known = _first_number(stage.metrics.get(f"conversations.{name}"), stage.metrics.get(name))
        path = stage.folder / f"{name}.jsonl"
        if known is None and path.is_file() and path.stat().st_size < _LARGEST_FILE_TO_COUNT:
            with path.open("rb") as file:
                known = sum(1 for line in file if line.strip())
        if known:
            counts.append((words, int(known)))
    return counts


def _parameters(run: RunRecord) -> float | None:
    for stage in (run.stages[name] for name in (*MODELS, "translate", "emulator")):
        folder = stage.folder / "model"
        card = _json_table(folder / "card.json")
        known = _first_number(stage.metrics.get("parameters"), card.get("parameters"))
        known = count_parameters(folder) if known is None else known
        if known is not None:
            return known
    return None


def _first_number(*values: object) -> float | None:
    known = (as_number(value) for value in values)
    return next((value for value in known if value is not None), None)


def compared_models(tables: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """The language models there are numbers of, in the order of their stages."""
    return [name for name in MODELS if tables.get(name)]


def compare_models(
    tables: Mapping[str, Mapping[str, float | None]],
) -> list[tuple[str, str, list[str]]]:
    """Name, hint, and value by model of each measure of language models that has been measured."""
    rows, models = [], compared_models(tables)
    tax = "lower is better; a rise is the alignment tax"
    for name, metric, decimals, hint in (
        ("Bits per byte of unseen text", "bits_per_byte", 3, tax),
        ("Perplexity of the person's reply", "reply_perplexity", 1, "lower is better"),
        ("Tokens per reply", "reply_tokens", 1, "a large change needs an explanation"),
    ):
        values = [tables[stage].get(metric) for stage in models]
        if any(value is not None for value in values):
            rows.append((name, hint, [numbers.fixed(value, decimals) for value in values]))
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
            except (ValueError, RecursionError):
                break
            if isinstance(row, dict) and isinstance(row.get("labeler"), str):
                labelers.setdefault(row["labeler"])
    known = [name for name in labelers if name]
    if len(known) > 4:
        return f"{', '.join(known[:4])} and {len(known) - 4} more"
    return ", ".join(known) or None


def read_warnings(run: RunRecord) -> list[tuple[str, int | None, str]]:
    """Stage, step and text of the warnings in stage.json (``warnings``) and warnings.jsonl."""
    found: dict[tuple[str, int | None, str], None] = {}
    for stage in run.stages.values():
        said = stage.manifest.get("warnings")
        rows: list[object] = [*said] if isinstance(said, list) else []
        for row in rows + growing_rows(stage.folder / "warnings.jsonl"):
            table = row if isinstance(row, dict) else {"text": row}
            text = table.get("text") or table.get("message") or table.get("warning")
            step = as_number(table.get("step"))
            if text:
                whole = None if step is None else int(step)
                found.setdefault((stage_title(stage.name), whole, str(text)))
    return list(found)


def measure_efforts(run: RunRecord) -> list[tuple[str, ...]]:
    """A row a stage with a wall time.

    Returns:
        Title, wall time, peak memory, median tokens per second, share of peak, and arithmetic.
    """
    efforts: list[tuple[str, ...]] = []
    for stage in run.stages.values():
        if stage.wall_seconds is None:
            continue
        rows = read_metrics(stage.folder / "metrics.jsonl")
        speed, of_rollouts, share = (
            statistics.median_high(values) if (values := pick(rows, name).y) else None
            for name in ("tokens_per_second", "rollout_tokens_per_second", "share_of_peak")
        )
        speed = of_rollouts if speed is None else speed
        efforts.append(
            (
                stage_title(stage.name),
                numbers.duration(stage.wall_seconds),
                numbers.size(stage.peak_memory_bytes),
                "" if speed is None else f"{speed:,.0f}",
                "" if share is None else numbers.percent(share, 0),
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
        if (value := hardware.get(key)) not in (None, "", []):
            amount = as_number(value) if key in ("memory_bytes", "memory") else None
            text = _plain(value) if amount is None else numbers.size(amount)
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
    return as_table(read_json(path)) if path.is_file() else {}


def _inline_title(stage: str) -> str:
    """A stage's title in the middle of a sentence: capitals only where they are an acronym's."""
    title = stage_title(stage)
    return title if title[:2].isupper() else title[0].lower() + title[1:]


def _listed(words: list[str]) -> str:
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]
