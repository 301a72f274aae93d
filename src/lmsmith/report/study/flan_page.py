"""The page of ``lmsmith study flan``: accuracy on unseen clusters by what was learnt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsmith.report.evaluation.shown import share_with_interval
from lmsmith.report.numbers import percent
from lmsmith.report.run.page import write_page
from lmsmith.statistics.intervals import Interval

WAYS: Mapping[str, str] = {
    "unseen": "unseen clusters",
    "seen": "learnt tasks, learnt templates",
    "other_phrasing": "learnt tasks, other templates",
    "in_context": "unseen clusters, examples shown",
}
"""What is measured → its column."""

COLUMNS = ("demonstrations", *WAYS.values())


def arm_row(arm: Mapping[str, Any]) -> list[str]:
    """The arm, its demonstrations, and accuracy after tuning in each way, with its interval."""
    count = f"{arm['flan']['demonstrations']:,.0f}"
    return [str(arm["arm"]), count, *(_share(arm, f"{way}_after") for way in WAYS)]


def _share(arm: Mapping[str, Any], name: str) -> str:
    metrics = arm["zero_shot"]
    if name not in metrics:
        return ""
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    return share_with_interval(Interval(metrics[name], low, high))


def before_sentence(record: Mapping[str, Any]) -> str:
    """Accuracy on unseen clusters before tuning, and of what knows nothing."""
    first = record["arms"][0]
    known = first["zero_shot"]
    return (
        f"Before tuning {_share(first, 'unseen_before')} on the {known['unseen_items']:.0f} items "
        f"of unseen clusters; guessing {percent(known['unseen_chance'])}, the commonest answer "
        f"{percent(known['unseen_commonest'])}."
    )


def build_flan_page(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write ``report.html`` into a folder, whole or not at all, and return its path."""
    context = {
        "model": record["model"],
        "version": record["version"],
        "columns": COLUMNS,
        "rows": [arm_row(arm) for arm in record["arms"]],
        "gains": [[str(arm["arm"]), *(_share(arm, f"{w}_gain") for w in WAYS)]
                  for arm in record["arms"]],
        "ways": list(WAYS.values()),
        "before": before_sentence(record),
    }  # fmt: skip
    return write_page(folder, "flan.html.j2", context)
