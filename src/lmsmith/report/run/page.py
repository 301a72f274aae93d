"""The report: one HTML file that holds everything and asks nothing of the network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2

from lmsmith.core.config import to_toml
from lmsmith.core.files import atomic_write
from lmsmith.report import numbers
from lmsmith.report.run.facts import (
    compare_models,
    compared_models,
    describe_machine,
    describe_run,
    find_labeler,
    flatten,
    matrix_peak,
    measure_efforts,
    name_facts,
    read_warnings,
)
from lmsmith.report.run.figures import draw_figures, draw_time
from lmsmith.report.run.gains import describe_gains, key_figures
from lmsmith.report.run.metrics import stage_tables
from lmsmith.report.run.records import RunRecord, read_run
from lmsmith.report.run.samples import SHOWN_OPEN, average_scores, read_exchanges, read_practice
from lmsmith.report.run.words import (
    GLOSSARY,
    REPLIERS,
    STAGE_WORDS,
    judge_sentence,
    labeler_sentence,
    stage_title,
)

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")


def build_report(run_folder: Path) -> Path:
    """Write ``report.html`` into ``run_folder``, whole or not at all, and return its path.

    The page is a function of the run folder: built twice, it is the same to the byte.

    Raises:
        UserError: ``run_folder`` is not a run folder, a file in it is damaged, or the page
            cannot be written.
    """
    run = read_run(run_folder)
    return write_page(run.folder, "page.html.j2", _context(run))


def write_page(folder: Path, template: str, context: dict[str, Any]) -> Path:
    """Write a page of one of this package's templates to ``report.html`` and return its path."""
    path = folder / "report.html"
    atomic_write(path, render(template, context))
    return path


def render(template: str, context: dict[str, Any]) -> str:
    """HTML of a template; characters that HTML or UTF-8 cannot hold become U+FFFD."""
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
    return _UNPRINTABLE.sub("\ufffd", environment.get_template(template).render(context))


def _context(run: RunRecord) -> dict[str, Any]:
    tables = stage_tables(run)
    exchanges = read_exchanges(run)
    labeler, judges_labeler = (find_labeler(run, stage) for stage in ("rankings", "judge_rankings"))
    recipe_keys = {"description", "seed", "machine", *run.stages}
    return {
        "run": run,
        "lede": describe_run(run),
        "description": str(run.recipe.get("description") or ""),
        "facts": name_facts(run),
        "figures_on_top": key_figures(tables),
        "gains": describe_gains(run, tables),
        "outdated": [s for s in run.stages.values() if s.status == "outdated"],
        "titles": {name: words.title for name, words in STAGE_WORDS.items()},
        "compared": [REPLIERS[name] for name in compared_models(tables)],
        "comparisons": compare_models(tables),
        "labeler": labeler_sentence(labeler) if "rankings" in tables else "",
        "judge": judge_sentence(labeler, judges_labeler) if "judge" in tables else "",
        "groups": draw_figures(run),
        "averages": average_scores(run),
        "exchanges": exchanges[:SHOWN_OPEN],
        "folded_exchanges": exchanges[SHOWN_OPEN:],
        "practice": read_practice(run),
        "warnings": read_warnings(run),
        "settings": [
            (stage_title(stage.name), stage.name, flatten(stage.settings))
            for stage in run.stages.values()
            if stage.settings
        ],
        "time": draw_time(run),
        "efforts": measure_efforts(run),
        "total_seconds": sum(stage.wall_seconds or 0.0 for stage in run.stages.values()),
        "hardware": [*describe_machine(run.hardware), *matrix_peak(run)],
        "versions": [(k, v) for k, v in flatten(run.versions) if k not in run.hardware],
        "glossary": GLOSSARY,
        "toml": to_toml({k: v for k, v in run.recipe.items() if k in recipe_keys}),
        "metrics": [(name, stage_title(name), table) for name, table in tables.items() if table],
    }
