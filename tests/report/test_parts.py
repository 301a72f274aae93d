"""The report's small parts: numbers, series, folded text, TOML, verdicts, parameter counts."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmsmith.core.config import to_toml
from lmsmith.report import numbers
from lmsmith.report.drawing import COLOURS, Series, canvas, pick, smooth, themed_svg, thin
from lmsmith.report.run.gains import verdict_of
from lmsmith.report.run.records import count_parameters
from lmsmith.report.run.samples import fold, guess_language
from lmsmith.report.run.words import STAGE_WORDS, labeler_sentence
from lmsmith.stages.table import STAGES


@pytest.mark.parametrize(("cores", "text"), [(1, "AMD EPYC, 1 core"), (2, "AMD EPYC, 2 cores")])
def test_machines(cores: int, text: str) -> None:
    said = numbers.machine_words({"cpu": "AMD EPYC", "cores": cores})
    assert said.replace(numbers.NBSP, " ") == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (372, "6 min 12 s"),
        (3599.7, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (None, "–"),
        (float("nan"), "–"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert numbers.duration(seconds).replace(numbers.NBSP, " ") == text


def test_numbers_read_as_a_person_writes_them() -> None:
    assert numbers.number(1234567) == "1,234,567"
    assert numbers.number(-0.0123456) == "−0.0123"
    assert numbers.number(1.23e-7) == "1.23e-07"
    assert numbers.number(float("inf")) == "–"
    assert numbers.signed(-0.421) == "−0.42"
    assert numbers.size(1_240_000_000).replace(numbers.NBSP, " ") == "1.24 GB"
    assert numbers.percent(0.6844).replace(numbers.NBSP, " ") == "68.4 %"
    assert numbers.large_count(5_900_000).replace(numbers.NBSP, " ") == "5.9 million"
    assert numbers.percent_interval(0.5, None) == ""


finite_floats = st.floats(-1e6, 1e6)


@given(st.lists(finite_floats, min_size=1, max_size=300), st.integers(1, 50))
def test_thinning_keeps_the_range_and_the_mean_of_whole_spans(ys: list[float], most: int) -> None:
    series = Series(tuple(map(float, range(len(ys)))), tuple(ys))
    thinned = thin(series, most)
    assert len(thinned) == min(len(ys), most)
    assert min(ys) - 1e-6 <= min(thinned.y) <= max(thinned.y) <= max(ys) + 1e-6
    assert list(thinned.x) == sorted(thinned.x)


def test_smoothing_is_the_mean_of_the_neighbours() -> None:
    series = Series((0, 1, 2, 3, 4), (0, 3, 6, 3, 0))
    assert smooth(series, 0.4).y == (1.5, 3, 4, 3, 1.5)
    assert smooth(series, 0.1) is series


def test_rows_without_the_metric_or_with_nan_are_left_out() -> None:
    rows = [
        {"step": 1, "a": 2},
        {"step": 2},
        {"step": 3, "a": float("nan")},
        {"step": 4, "a": True},
    ]
    assert pick(rows, "a") == Series((1.0,), (2.0,))


@given(st.text(max_size=300), st.integers(1, 60))
def test_folding_loses_no_character(text: str, limit: int) -> None:
    folded = fold(text, limit)
    assert folded.head + folded.rest == text


def test_folding_never_cuts_an_emoji_or_an_accent() -> None:
    family = "👩‍👩‍👧‍👦"
    folded = fold(family * 40, 10)
    assert folded.head.endswith("👦")
    assert not fold("e\u0301" * 50, 7).rest.startswith("\u0301")


def test_languages_are_guessed_only_where_the_script_settles_it() -> None:
    assert guess_language("你好,世界 hi") == "zh"
    assert guess_language("こんにちは世界") == "ja"
    assert guess_language("안녕하세요") == "ko"
    assert guess_language("hello") == guess_language("") == ""


toml_values = st.recursive(
    st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8), toml_values, max_size=5
    )
)
def test_toml_written_is_toml_read(tables: dict[str, object]) -> None:
    assert tomllib.loads(to_toml(tables)) == tables


def test_toml_has_no_none() -> None:
    assert tomllib.loads(to_toml({"a": None, "b": {"c": None, "d": [1, None]}})) == {
        "b": {"d": [1]}
    }


def test_a_verdict_needs_the_whole_interval_on_one_side() -> None:
    assert verdict_of(0.51, 0.6, 0.5) == "better"
    assert verdict_of(0.5, 0.6, 0.5) == "unclear"
    assert verdict_of(0.3, 0.49, 0.5) == "worse"
    assert verdict_of(None, 0.6, 0.5) == ""


def test_parameters_are_counted_from_the_header_and_damage_is_not_fatal(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file(
        {"a": torch.zeros(3, 5), "b": torch.zeros(7), "scalar": torch.tensor(1.0)},
        tmp_path / "model.safetensors",
        metadata={"x": "y"},
    )
    assert count_parameters(tmp_path) == 23
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 40)
    assert count_parameters(tmp_path) is None
    assert count_parameters(tmp_path / "absent") is None


def test_an_svg_takes_its_colours_from_the_page_and_names_its_parts() -> None:
    drawn = []
    for _ in range(2):
        with canvas() as (figure, (axes,)):
            axes.plot([0, 1], [0, 1], color=COLOURS["ppo"], marker="o")
            axes.set_title("2 < 3 & 4")
            drawn.append(themed_svg(figure, "one", 'a "label" & more'))
    assert drawn[0] == drawn[1]
    assert "var(--ppo)" in drawn[0]
    assert "#0102" not in drawn[0]
    assert 'aria-label="a &quot;label&quot; &amp; more"' in drawn[0]
    assert "2 &lt; 3 &amp; 4</text>" in drawn[0]
    assert "http" not in drawn[0]


def test_the_labeler_is_called_what_it_is() -> None:
    assert "No person ranked" in labeler_sentence("human-reply-first")
    assert "No person ranked" in labeler_sentence("human_reply_first")
    assert "“ann”" in labeler_sentence("ann")
    assert "do not say" in labeler_sentence(None)


def test_the_report_knows_every_stage_of_the_pipeline_in_its_order() -> None:
    assert [stage.name for stage in STAGES] == list(STAGE_WORDS)


def test_names_are_shortened_by_the_folders_that_all_are_in() -> None:
    from lmsmith.report.evaluation.shown import short_names

    assert short_names(["runs/small/sft", "runs/small/ppo"]) == ["sft", "ppo"]
    assert short_names(["runs/small", "runs/small/sft"]) == ["small", "small/sft"]
    assert short_names(["one", "two"]) == ["one", "two"]
    assert short_names(["runs/a/sft", "runs/b/sft"]) == ["a/sft", "b/sft"]
