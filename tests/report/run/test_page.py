"""The page is whole, asks nothing of the network, escapes what it shows and never invents."""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.core.files import sha256_file
from lmsmith.report.run.page import build_report
from lmsmith.runs.records import write_record

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Checks that tags are closed in order, and keeps ids, references, tags and text."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: Counter[str] = Counter()
        self.references: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.tags: Counter[str] = Counter()
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            self.attributes.append((tag, name, value))
            if name == "id" and value:
                self.ids[value] += 1
            if name in ("src", "href", "srcset", "action", "data", "xlink:href", "poster"):
                self.references.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def html(shared_run: Path) -> str:
    path = build_report(shared_run)
    assert path == shared_run / "report.html"
    return path.read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_its_ids_are_unique(html: str) -> None:
    page = Page(html)
    assert [name for name, count in page.ids.items() if count > 1] == []
    assert page.tags["figure"] == 15
    assert page.tags["h1"] == page.tags["main"] == 1


def test_nothing_on_the_page_refers_to_the_outside(html: str) -> None:
    page = Page(html)
    assert page.references
    assert all(reference.startswith("#") for reference in page.references)
    assert all(reference[1:] in page.ids for reference in page.references)
    assert page.tags["script"] == page.tags["link"] == page.tags["img"] == 0
    assert not re.search(r"https?:|//[a-z]", html)
    assert "@import" not in html
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", html))


def test_every_reference_inside_a_figure_finds_its_target(html: str) -> None:
    page = Page(html)
    assert all(target in page.ids for target in re.findall(r"url\(#([^)]*)\)", html))


def test_model_text_is_escaped_and_odd_text_survives(html: str) -> None:
    page = Page(html)
    assert "<script>alert" not in html
    assert "<script>alert('x')</script> & <b>bold</b> </p></section>" in page.text
    assert "今天天气不错" in page.text
    assert "👩‍👩‍👧‍👦 family 🇫🇷" in page.text
    assert ("p", "lang", "zh") in page.attributes
    assert "(empty)" in page.text
    assert "control \ufffd\ufffd characters" in page.text
    assert re.search(r"6,\d{3} more characters", page.text)
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f]", html)


def test_the_numbers_stand_on_the_page_with_their_intervals(html: str) -> None:
    text = " ".join(Page(html).text.replace("\u00a0", " ").split())
    assert "A GPT of 5.9 million parameters" in text
    assert "in 15 min 40 s on 2 cores." in text
    assert "1.789" in text
    assert "51.2 → 38.4" in text
    assert "52.1 % → 61.2 % ▲ gained" in text
    assert "95 %: 62.0 to 74.4 %; at equal length 66.1 %; KL 2.31 nats" in text
    assert "No person ranked replies for this run" in text
    assert "PPO. iteration 31: KL rose above its budget" in text
    assert "layers 6, width 256, heads 4, context 256" in text
    assert "3,124 documents to pretrain on, 900 demonstrations, 215 for the test" in text
    assert "same labeler as the reward model" in text
    assert "PPO, iteration 1" in text
    assert "<|" not in text
    assert "PPO, iteration 40" in text


def test_the_tokenizer_says_how_dense_its_tokens_are(html: str) -> None:
    assert "0.28 tokens a character" in html


def test_sections_stand_in_the_reading_order(html: str) -> None:
    sections = re.findall(r'<section class="part" id="(\w+)"', html)
    assert sections == [
        "stages",
        "curves",
        "replies",
        "warnings",
        "settings",
        "effort",
        "reading",
        "again",
    ]


def test_an_interval_that_holds_the_baseline_is_not_called_a_gain(whole_run: Path) -> None:
    path = whole_run / "evaluate" / "stage.json"
    manifest = json.loads(path.read_text())
    manifest["metrics"].update({"ppo.win_rate_low": 0.49, "reward.accuracy_low": 0.52})
    write_record(path, manifest)
    html = build_report(whole_run).read_text(encoding="utf-8")
    assert Page(html).text.count("● no clear gain") == 2


def test_ppo_without_a_judge_is_measured_by_its_own_reward_model(whole_run: Path) -> None:
    path = whole_run / "evaluate" / "stage.json"
    manifest = json.loads(path.read_text())
    metrics = manifest["metrics"]
    for name in [name for name in metrics if name.startswith("ppo.win_rate")]:
        del metrics[name]
    metrics.update({f"ppo.win_rate_by_reward{end}": 0.75 for end in ("", "_low", "_high")})
    write_record(path, manifest)
    text = Page(build_report(whole_run).read_text(encoding="utf-8")).text
    assert "wins over SFT by its own reward model" in text
    assert "no judge measured it" in text
    assert "not measured" not in text


def test_the_recipe_on_the_page_is_enough_to_run_again(html: str, shared_run: Path) -> None:
    page = Page(html)
    start = page.text.index('description = "Real')
    toml = page.text[start : page.text.index("Made by lmsmith report")].strip()
    recipe = json.loads((shared_run / "recipe.json").read_text())["recipe"]
    assert tomllib.loads(toml) == {key: value for key, value in recipe.items() if key != "name"}


def test_every_figure_has_words_for_those_who_cannot_see_it(html: str) -> None:
    page = Page(html)
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == page.tags["svg"] == page.tags["figcaption"]
    assert all(labels)


def test_tables_have_headers_and_the_page_a_language(html: str) -> None:
    page = Page(html)
    assert ("html", "lang", "en") in page.attributes
    scopes = [name for tag, name, _ in page.attributes if tag == "th"]
    assert scopes.count("scope") == page.tags["th"]


def test_the_page_is_the_same_to_the_byte_when_built_again(html: str, shared_run: Path) -> None:
    assert build_report(shared_run).read_text(encoding="utf-8") == html
    assert not list(shared_run.glob(".*"))


@pytest.mark.parametrize(
    "stages",
    [(), ("data",), ("data", "tokenizer", "pretrain"), ("pretrain", "sft", "ppo"), ("evaluate",)],
)
def test_a_partial_run_has_a_page_that_says_what_was_not_run(
    partial_run: Callable[..., Path], stages: tuple[str, ...]
) -> None:
    html = build_report(partial_run(*stages)).read_text(encoding="utf-8")
    page = Page(html)
    assert page.text.count("not run") >= 10 - len(stages)
    assert "Not done yet" in page.text
    assert ("ppo" in stages) == ("PPO at its beginning" in page.text)
    if not stages:
        assert "Nothing has been trained yet." in page.text


def test_a_stage_in_the_middle_with_torn_logs_still_has_a_page(
    partial_run: Callable[..., Path],
) -> None:
    run = partial_run("data", "tokenizer", "pretrain", "sft", "ppo")
    (run / "ppo" / "stage.json").rename(run / "ppo" / "started.json")
    for name in ("samples.jsonl", "metrics.jsonl"):
        path = run / "ppo" / name
        path.write_text(path.read_text() + '{"step": 41, "promp', encoding="utf-8")
    text = Page(build_report(run).read_text(encoding="utf-8")).text
    assert "begun, not done" in text
    assert "PPO, iteration 40" in text


def test_rankings_by_people_are_not_called_a_rule(whole_run: Path) -> None:
    rows = "".join(json.dumps({"labeler": name}) + "\n" for name in ("ann", "<b>bo", "ann"))
    (whole_run / "rankings" / "train.jsonl").write_text(rows)
    html = build_report(whole_run).read_text(encoding="utf-8")
    assert "ranked by the labeler named “ann, <b>bo”" in Page(html).text
    assert "No person ranked" not in html
    assert "it learned from the labeler named “human_reply_first”" in Page(html).text


def test_metrics_full_of_nulls_and_a_single_row_still_draw(
    partial_run: Callable[..., Path],
) -> None:
    run = partial_run("pretrain", "reward", "ppo")
    log = run / "pretrain" / "metrics.jsonl"
    log.write_text('{"step": 1, "bits_per_byte": 8.1}\n{"step": 2, "bits_per_byte": null}\n')
    (run / "reward" / "metrics.jsonl").write_text('{"step": 1, "loss": 0.7}\n')
    (run / "ppo" / "metrics.jsonl").write_text("")
    html = build_report(run).read_text(encoding="utf-8")
    assert "figure-pretrain-loss" in html
    assert "figure-ppo-kl" not in html


def test_a_folder_that_is_no_run_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        build_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
@pytest.mark.parametrize("name", ["samples.jsonl", "stage.json"])
def test_what_is_shown_is_what_its_stage_wrote(whole_run: Path, name: str, damage: str) -> None:
    folder = whole_run / "evaluate"
    record = json.loads((folder / "stage.json").read_text())
    samples = folder / "samples.jsonl"
    write_record(folder / "stage.json", {**record, "outputs": {samples.name: sha256_file(samples)}})
    build_report(whole_run)
    path = folder / name
    content = path.read_bytes()
    half = len(content) // 2
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:half])
    else:
        path.write_bytes(content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :])
    if (name, damage) == ("stage.json", "missing"):
        build_report(whole_run)  # the stage is not done
        return
    with pytest.raises(UserError) as caught:
        build_report(whole_run)
    assert str(path) in caught.value.problem
    assert "--redo evaluate" in caught.value.fix
