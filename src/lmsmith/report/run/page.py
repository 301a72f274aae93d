"""The report: one HTML file that holds everything and asks nothing of the network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2

from lmsmith.core.config import to_toml
from lmsmith.core.files import atomic_write
from lmsmith.report import numbers
from lmsmith.report.run import facts, words
from lmsmith.report.run.classifier import read_predictions
from lmsmith.report.run.figures import draw_figures, draw_time
from lmsmith.report.run.gains import describe_gains, key_figures
from lmsmith.report.run.metrics import stage_tables
from lmsmith.report.run.records import RunRecord, read_run
from lmsmith.report.run.samples import SHOWN_OPEN, average_scores, read_exchanges, read_practice

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


def write_page(
    folder: Path, template: str, context: dict[str, Any], name: str = "report.html"
) -> Path:
    """Write a page of one of this package's templates into a folder and return its path.

    Characters that HTML or UTF-8 cannot hold become U+FFFD.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lmsmith.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    filters = (numbers.duration, numbers.size, numbers.number, numbers.signed)
    environment.filters.update({each.__name__: each for each in filters})
    html = environment.get_template(template).render(context)
    path = folder / name
    atomic_write(path, _UNPRINTABLE.sub("\ufffd", html))
    return path


def _context(run: RunRecord) -> dict[str, Any]:
    tables, exchanges, stages = stage_tables(run), read_exchanges(run), run.stages.values()
    labelers = [facts.find_labeler(run, stage) for stage in ("rankings", "judge_rankings")]
    recipe_keys = {"description", "seed", "machine", *run.stages}
    return {
        "run": run,
        "lede": facts.describe_run(run),
        "description": str(run.recipe.get("description") or ""),
        "facts": facts.name_facts(run),
        "figures_on_top": key_figures(tables),
        "gains": describe_gains(run, tables),
        "outdated": [stage for stage in stages if stage.status == "outdated"],
        "stage_title": words.stage_title,
        "compared": [words.REPLIERS[name] for name in facts.compared_models(tables)],
        "comparisons": facts.compare_models(tables),
        "labeler": words.labeler_sentence(labelers[0]) if "rankings" in tables else "",
        "judge": words.judge_sentence(*labelers) if "judge" in tables else "",
        "groups": draw_figures(run),
        "averages": average_scores(run),
        "exchanges": exchanges[:SHOWN_OPEN],
        "folded_exchanges": exchanges[SHOWN_OPEN:],
        "practice": read_practice(run),
        "predictions": read_predictions(run),
        "warnings": facts.read_warnings(run),
        "settings": {s.name: facts.flatten(s.settings) for s in stages if s.settings},
        "time": draw_time(run),
        "efforts": facts.measure_efforts(run),
        "total_seconds": sum(stage.wall_seconds or 0.0 for stage in stages),
        "hardware": [*facts.describe_machine(run.hardware), *facts.matrix_peak(run)],
        "versions": [(k, v) for k, v in facts.flatten(run.versions) if k not in run.hardware],
        "glossary": words.GLOSSARY,
        "toml": to_toml({k: v for k, v in run.recipe.items() if k in recipe_keys}),
        "metrics": tables,
    }
