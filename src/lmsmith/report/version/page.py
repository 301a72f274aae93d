"""The page of a round: candidate against current version, gate by gate, with answers of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmsmith.catalogue.versions import Gate, Version
from lmsmith.core.files import read_json, read_rows
from lmsmith.report import numbers
from lmsmith.report.run.figures import draw_figures
from lmsmith.report.run.page import write_page
from lmsmith.report.run.records import read_run
from lmsmith.report.version.figures import GATES, draw_gates

PAGE = "report.html"

SHOWN_OPEN, SHOWN_MOST = 8, 60
"""Prompts shown at once, and at most."""

VERDICTS: Mapping[str, tuple[str, str]] = {
    "first": ("neutral", "The first version: there is nothing to compare it with."),
    "passed": ("good", "The candidate passed every gate that it needs. People's votes decide now."),
    "refused": (
        "bad",
        "The candidate is refused: a gate failed. It is kept, and nobody meets it.",
    ),
    "not shown": (
        "unsure",
        "Not shown to be better: a gate that is needed could not be measured, or its figure may be "
        "chance. That is no pass.",
    ),
}

LEARNT: Mapping[str, str] = {
    "demonstrations": "demonstrations and better answers, for SFT",
    "reward/train": "rankings, for the reward model",
    "reward/validation": "rankings, which say when the reward model overfits",
    "reward/thumbs": "thumbs, for the reward model",
    "prompts": "prompts, for PPO",
    "judge/train": "rankings, for the judge alone",
    "judge/validation": "rankings, which say when the judge overfits",
    "judge/thumbs": "thumbs, for the judge",
    "held_out/test": "rankings held out for the gates",
    "held_out/thumbs": "thumbs held out",
    "validation": "demonstrations held out, which say when SFT overfits",
    "test": "prompts held out, which both versions answer",
}


def ensure_version_page(made: Version) -> Path:
    """The page of a version, which is written if it is not there."""
    path = made.folder / PAGE
    return path if path.is_file() else build_version_page(made, made.folder)


def build_version_page(made: Version, folder: Path) -> Path:
    """Write ``report.html`` into the folder of a version, whole or not at all.

    Args:
        made: the version's record.
        folder: where its files are; not yet its own while it is being made.

    Raises:
        UserError: a file of the round is damaged, or the page cannot be written.
    """
    tone, verdict = VERDICTS[made.verdict]
    samples = _samples(folder)
    return write_page(folder, "version.html.j2", {
        "version": made,
        "parents": ", ".join(f"{made.name}@{number}" for number in made.parents),
        "current": made.compared_with,
        "tone": tone,
        "verdict": verdict,
        "failed": [_title(gate) for gate in made.gates if gate.state == "failed"],
        "gates": [_row(gate) for gate in made.gates],
        "picture": draw_gates(made.gates),
        "learnt": _learnt(made),
        "people": len(made.learnt.people),
        "left_out": _left_out(folder),
        "samples": samples[:SHOWN_OPEN],
        "folded": samples[SHOWN_OPEN:SHOWN_MOST],
        "groups": _curves(folder),
        "figures": [
            (name, numbers.number(value)) for name, value in sorted(made.figures.items())
        ],
    })  # fmt: skip


def _title(gate: Gate) -> str:
    word = GATES.get(gate.name)
    return word.title if word else gate.name.replace("_", " ")


def _row(gate: Gate) -> dict[str, str]:
    interval = ""
    if gate.low is not None and gate.high is not None:
        interval = f"{numbers.number(gate.low)} to {numbers.number(gate.high)}"
    word = GATES.get(gate.name)
    rule = ""
    if gate.margin is not None:
        rule = f"low end above {numbers.number(gate.margin)}"
        if word is None or not word.above:
            rule = f"at most {numbers.number(gate.margin)}"
        if gate.name == "length":
            rule = f"{numbers.number(1 / gate.margin)} to {numbers.number(gate.margin)}"
    return {
        "title": _title(gate),
        "state": gate.state,
        "tone": {"passed": "good", "failed": "bad"}.get(gate.state, "unsure"),
        "value": "" if gate.value is None else numbers.number(gate.value),
        "interval": interval,
        "rule": rule,
        "reason": gate.reason + _how_to_name(gate),
    }


def _how_to_name(gate: Gate) -> str:
    """How to measure tasks in the next round, where the recipe names none."""
    example = {"tasks": "arithmetic/2d_plus", "safety": "refusal/harmful"}.get(gate.name)
    if not example or gate.state != "not shown":
        return ""
    return f"; name some by --set gates.{gate.name}='[\"{example}\"]' (lmsmith tasks ls)"


def _learnt(made: Version) -> list[tuple[str, str]]:
    """(words, count) of everything that the snapshot holds."""
    counts = made.learnt.counts
    rows = [(words, counts[key]) for key, words in LEARNT.items() if counts.get(key)]
    rows += [(key, count) for key, count in counts.items() if key not in LEARNT and count]
    return [(words, f"{count:,}") for words, count in rows]


def _left_out(folder: Path) -> list[str]:
    path = folder / "data/snapshot.json"
    found: Any = read_json(path) if path.is_file() else {}
    return [f"{count:,} {reason}" for reason, count in found.get("left_out", {}).items()]


def _samples(folder: Path) -> list[dict[str, Any]]:
    """Prompts with the answers of both, in the order of the file."""
    path = folder / "gates/samples.jsonl"
    if not path.is_file():
        return []
    return [
        {"turns": _turns(row.get("prompt")), "answers": row.get("responses") or {}}
        for _, row in read_rows(path)
    ]


def _turns(prompt: Any) -> list[tuple[str, str]]:
    """(role, text) of the messages of a prompt, which may be one text."""
    if isinstance(prompt, list):
        return [(str(each.get("role")), str(each.get("content"))) for each in prompt]
    return [("", str(prompt or ""))]


def _curves(folder: Path) -> list[tuple[str, Sequence[Any]]]:
    """The curves of a run: what each stage learnt, and PPO by iterations."""
    if not any((folder / name / "stage.json").is_file() for name in ("sft", "reward", "ppo")):
        return []
    groups = draw_figures(read_run(folder))
    return [(title, figures) for title, figures in groups.items()]
