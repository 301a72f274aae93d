"""The page of ``lmsmith offsite compare``: tuning on an emulator beside the other ways."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.ticker import PercentFormatter

from lmsmith.report import drawing
from lmsmith.report.drawing import COLOURS, canvas, themed_svg
from lmsmith.report.evaluation.shown import share_with_interval
from lmsmith.report.numbers import duration, machine_words, percent, signed, signed_interval
from lmsmith.report.run.page import write_page
from lmsmith.statistics.intervals import Interval

WORDS: Mapping[str, str] = {
    "full": "full fine-tuning",
    "plugged": "plug-in",
    "emulator": "emulator fine-tuning",
    "zero_shot": "zero-shot",
    "emulator_zero_shot": "emulator zero-shot",
}
"""The ways, in the order that the paper finds, the best first."""

COLUMNS = ("accuracy (95 % interval)", "trained numbers", "time of the run")

_COLOURS = {"full": "sft", "plugged": "ppo", "emulator": "reward"}


def table_rows(task: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Each way's accuracy, the numbers it trains, and the time of its run, measuring included."""
    runs = {"full": "full", "plugged": "tuned", "emulator": "tuned"}
    rows = []
    for arm, words in WORDS.items():
        shown = share_with_interval(_interval(task["arms"][arm]))
        trained = seconds = ""
        if run := runs.get(arm):
            trained = f"{task['trained_parameters'][run]:,}"
            seconds = duration(task["seconds"][run])
        rows.append((words, shown, trained, seconds))
    return rows


def difference_rows(task: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The paired differences: what less what, points of per cent, and their interval."""
    return [
        (
            f"{WORDS[each['better']]} − {WORDS[each['worse']]}",
            signed(100 * each["value"], 1),
            signed_interval(100 * each["low"], 100 * each["high"], 1),
        )
        for each in task["differences"]
    ]


def order_sentence(task: Mapping[str, Any]) -> str:
    """Which steps of the paper's order these items show, and which they do not."""
    steps = task["differences"][:3]
    signs = ("≥", ">", ">")
    parts = []
    for each, sign in zip(steps, signs, strict=True):
        step = f"{WORDS[each['better']]} {sign} {WORDS[each['worse']]}"
        held = each["value"] >= 0 if sign == "≥" else each["value"] > 0
        sure = each["low"] > 0 or each["high"] < 0
        verdict = ("yes" if held else "no") + ("" if sure else ", within the interval")
        parts.append(f"{step}: {verdict}")
    guess = f"Guessing gives {percent(task['chance'])}, the commonest answer"
    return f"The paper's order here: {'; '.join(parts)}. {guess} {percent(task['commonest'])}."


def _interval(found: Mapping[str, float]) -> Interval:
    return Interval(found["value"], found["low"], found["high"])


def draw_arms(name: str, task: Mapping[str, Any]) -> str:
    """Accuracy of each way as a point with its interval; the commonest answer is dotted."""
    with canvas((5.6, 1.9)) as (figure, (axes,)):
        for place, arm in enumerate(WORDS):
            found = task["arms"][arm]
            colour = COLOURS[_COLOURS.get(arm, "muted")]
            axes.hlines(place, found["low"], found["high"], color=colour, linewidth=2.0)
            axes.plot(found["value"], place, color=colour, marker="o", markersize=5)
        axes.axvline(task["commonest"], **drawing.REFERENCE)
        axes.set_yticks(range(len(WORDS)), list(WORDS.values()))
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
        axes.invert_yaxis()
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel("test items answered rightly; dotted: the commonest answer")
        return themed_svg(figure, name, f"{task['task']}: accuracy of each way, with intervals")


def emulator_sentence(record: Mapping[str, Any]) -> str:
    """What the emulator has of the full model, and how well it predicts text."""
    known = record["emulator"]
    sentence = (
        f"The emulator has {known['layers']:.0f} of {known['full_layers']:.0f} layers, "
        f"{known['parameters']:,.0f} of {known['full_parameters']:,.0f} parameters"
    )
    if "test_bits_per_byte" not in known:
        return f"{sentence}. It was not distilled."
    names = ("undistilled_", "", "full_")
    before, after, full = (f"{known[f'{name}test_bits_per_byte']:.3f}" for name in names)
    return (
        f"{sentence}. Bits per byte of unseen text: {before} with layers left out, {after} after "
        f"distillation on {known['trained_target_tokens']:,.0f} tokens, {full} of the full model."
    )


def build_offsite_page(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write ``report.html`` into a folder, whole or not at all, and return its path."""
    hardware = record["hardware"]
    tasks = [
        {
            "name": each["task"],
            "about": f"{each['items']:,} test items, {each['train_examples']:,} training examples",
            "svg": draw_arms(f"arms-{number}", each),
            "rows": table_rows(each),
            "order": order_sentence(each),
            "differences": difference_rows(each),
        }
        for number, each in enumerate(record["tasks"])
    ]
    context = {
        "model": record["model"],
        "version": record["version"],
        "command": record["command"],
        "machine": machine_words(hardware),
        "emulator": emulator_sentence(record),
        "columns": COLUMNS,
        "tasks": tasks,
    }
    return write_page(folder, "offsite.html.j2", context)
