"""The page of ``lmsmith study bert``: figures, texts, and what each token sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmsmith.report import drawing
from lmsmith.report.drawing import COLOURS, ReportFigure, canvas
from lmsmith.report.evaluation.shown import share_with_interval
from lmsmith.report.numbers import duration, machine_words, percent
from lmsmith.report.run.page import write_page
from lmsmith.statistics.intervals import Interval

NAMES = {"gpt": "GPT", "bert": "BERT"}
_COLOURS = {"gpt": COLOURS["sft"], "bert": COLOURS["ppo"]}


def accuracy_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """Table of the tasks: GPT, BERT, their difference, test examples, each seed's accuracy."""
    rows = []
    for task, found in record["tasks"].items():
        each = [share_with_interval(_interval(found["accuracy"][name])) for name in NAMES]
        difference = _interval(found["difference"])
        seeds = "; ".join(
            f"{shown} {', '.join(percent(one['value']) for one in found['seeds'][name])}"
            for name, shown in NAMES.items()
        )
        rows.append(
            [task, *each, points_with_interval(difference), f"{found['examples']:,}", seeds]
        )
    return rows


def points_with_interval(found: Interval) -> str:
    """A difference of shares in percentage points, with its interval."""
    value, low, high = (100 * each for each in (found.value, found.low, found.high))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def masked_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Who names the hidden tokens, and how many of them."""
    said = {"gpt": "GPT, the left side alone", "bert": "BERT, both sides"}
    return [
        (said.get(name, name), share_with_interval(_interval(found)))
        for name, found in record["masked"].items()
    ]


def equal_sentence(record: Mapping[str, Any]) -> str:
    """Whether size, tokens and updates are equal, with the numbers that are not."""
    gpt, bert = (record["models"][name] for name in NAMES)
    ratio = bert["parameters"] / gpt["parameters"]
    unequal = [
        f"{what} {gpt[what]:,} and {bert[what]:,}"
        for what in ("tokens", "updates")
        if gpt[what] != bert[what]
    ]
    sizes = f"BERT has {ratio:.2f} times GPT's parameters, with the head that fills masks."
    if unequal:
        return f"{sizes} They do not compare at equal cost: {'; '.join(unequal)}."
    return f"{sizes} Both read the same text, as many tokens in as many updates."


def build_bert_page(folder: Path, record: Mapping[str, Any], command: str) -> Path:
    """Write ``report.html`` into a folder, whole or not at all, and return its path."""
    hardware, sentence = record["hardware"], record["sentence"]
    models = [
        [
            NAMES[name],
            f"{each['parameters']:,}",
            f"{each['tokens']:,}",
            f"{each['updates']:,}",
            percent(each["predicted_share"]),
            duration(each["seconds"]),
        ]
        for name, each in record["models"].items()
    ]
    context = {
        "version": record["version"],
        "command": command,
        "machine": machine_words(hardware),
        "models": models,
        "equal": equal_sentence(record),
        "rows": accuracy_rows(record),
        "settings": ", ".join(record["settings"]),
        "masked": masked_rows(record),
        "texts": record["texts"],
        "masks": draw_masks(sentence["tokens"]),
        "attention": [
            draw_layers(name, sentence["tokens"], sentence["attention"][name]) for name in NAMES
        ],
    }
    return write_page(folder, "bert.html.j2", context)


def draw_masks(tokens: Sequence[str]) -> ReportFigure:
    """What each token may see: the causal mask and the full one."""
    count = len(tokens)
    masks = {
        "gpt": [[float(column <= row) for column in range(count)] for row in range(count)],
        "bert": [[1.0] * count for _ in range(count)],
    }
    with canvas((7.4, 3.9), panels=2) as (figure, panels):
        for axes, (name, mask) in zip(panels, masks.items(), strict=True):
            drawing.draw_weights(axes, tokens, tokens, mask, _COLOURS[name])
            axes.set_title({"gpt": "GPT: causal", "bert": "BERT: full"}[name], fontsize=9)
        return ReportFigure.of(
            figure,
            "bert-masks",
            "What a token may see",
            "A row is a token, a column what it may attend to. GPT predicts the next token, so it "
            "sees itself and what is before it. BERT predicts hidden tokens, so it sees all.",
            "Two tables: a lower triangle for GPT, a full square for BERT.",
        )


def draw_layers(
    name: str, tokens: Sequence[str], layers: Sequence[Sequence[Sequence[float]]]
) -> ReportFigure:
    """The attention of a sentence in the first and the last layer, the mean of the heads."""
    shown = {"first layer": layers[0], "last layer": layers[-1]}
    with canvas((7.4, 3.9), panels=2) as (figure, panels):
        for axes, (title, weights) in zip(panels, shown.items(), strict=True):
            shades = [[value**0.5 for value in row] for row in weights]
            drawing.draw_weights(axes, tokens, tokens, shades, _COLOURS[name])
            axes.set_title(f"{NAMES[name]}, {title}", fontsize=9)
        return ReportFigure.of(
            figure,
            f"bert-attention-{name}",
            f"What {NAMES[name]} looks at",
            "The darker a cell, the more the row's token attends to the column's (mean of the "
            "heads; a row adds up to 1, and the shade is the root of the weight).",
            f"Two tables of attention weights of {NAMES[name]}, first and last layer.",
        )


def _interval(found: Mapping[str, float]) -> Interval:
    return Interval(found["value"], found["low"], found["high"])
