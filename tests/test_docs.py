"""The documents' command lines and settings exist, and the decisions are numbered without gaps."""

from __future__ import annotations

import functools
import inspect
import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmsmith.cli import COMMANDS
from lmsmith.core.config import decode, setting_keys
from lmsmith.core.recipe import GenerationConfig, MachineConfig, shipped_recipes
from lmsmith.core.renamed_keys import RENAMED_KEYS
from lmsmith.corpus.build.recipe import CorpusRecipe
from lmsmith.improve.recipe import ROUND
from lmsmith.models.presets import PRESETS
from lmsmith.stages.table import STAGES

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("README*.md"), *ROOT.glob("docs/**/*.md")])
EVERYWHERE = {"help", "debug", "device", "version"}
_NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

pages = pytest.mark.parametrize("page", PAGES, ids=_NAMES)


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The language and the text of each fenced block."""
    for found in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield found[1], found[2]


def command_lines(text: str) -> Iterator[str]:
    """What begins with ``lmsmith`` in blocks and between backticks, also after variables that are
    set, and after ``torchrun … -m``."""
    for language, block in blocks(text):
        if language in ("", "console", "sh", "bash", "yaml"):
            for line in block.replace("\\\n", " ").splitlines():
                for part in re.split(r"&&|[;|] ", line.removeprefix("$ ")):
                    before = r"(?:[A-Z_]+=\S*\s+)*|.*\s-m\s+"
                    if found := re.fullmatch(rf"(?:{before})(lmsmith\s.*)", part.strip()):
                        yield found[1]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for found in re.finditer(r"`(lmsmith [^`]+)`", prose):
        yield " ".join(found[1].split())


@functools.cache
def options() -> dict[str, set[str]]:
    """The names of each command's arguments and options."""
    return {
        each.name: {
            name.strip("_").replace("_", "-") for name in inspect.signature(each.load()).parameters
        }
        for each in COMMANDS
    }


def problems_of(line: str) -> list[str]:
    """Which words of a command line no command has."""
    try:
        words = shlex.split(line, comments=True)[1:]
    except ValueError:  # an apostrophe in an example that is cut short
        words = line.split()[1:]
    if not words or words[0].startswith("-") or words[0].isupper():
        return []
    groups = {name.split()[0] for name in options() if " " in name}
    name = " ".join(words[:2]) if " ".join(words[:2]) in options() else words[0]
    if name in options():
        known = options()[name] | EVERYWHERE
    elif name in groups and (len(words) == 1 or words[1][0] in "-…" or "|" in line):
        known = set().union(*(all_ for each, all_ in options().items() if each.startswith(name)))
    else:
        return [f"no command {' '.join(words[:2])!r}"]
    if name in ("run", "plan") and len(words) > 1 and not is_recipe(words[1]):
        return [f"no recipe {words[1]}"]
    flags = [word[2:].partition("=")[0] for word in words if re.match(r"--[a-z]", word)]
    return [f"{name} has no --{flag}" for flag in flags if flag not in known | EVERYWHERE]


def is_recipe(word: str) -> bool:
    """Whether a word is a shipped recipe, a shape, or stands for a file of the reader's."""
    return (
        word in shipped_recipes()
        or word in PRESETS
        or word.endswith(".toml")
        or not word.replace("-", "").islower()
    )


@pages
def test_every_command_line_names_a_command_and_its_options(page: Path) -> None:
    found = [
        f"{line}: {problem}"
        for line in command_lines(page.read_text())
        for problem in problems_of(line)
    ]
    assert not found, "\n".join(found)


@functools.cache
def settings() -> dict[str, type]:
    """The tables of a recipe."""
    shared = {"machine": MachineConfig, "generation": GenerationConfig}
    return {each.name: each.config_type() for each in STAGES} | shared


@functools.cache
def keys() -> frozenset[str]:
    """Every key of every stage, and every table."""
    found = {key for name, cls in settings().items() for key in setting_keys(cls, name)}
    # A round's own settings are set without the heading under which they are listed.
    found |= {key for each in ROUND for key in setting_keys(each.config_type(), each.name)}
    found |= {f"improve.{key}" for key in found}
    corpus = set(setting_keys(CorpusRecipe, ""))
    found |= corpus | {f"corpus.{key}" for key in corpus}
    tables = {key.rpartition(".")[0] for key in found}
    return frozenset(found | tables | {"seed", "description"})


@pages
def test_every_setting_of_a_recipe_exists(page: Path) -> None:
    text = page.read_text()
    found = []
    # A task's file has a table [data] of its own.
    tasks = page.relative_to(ROOT).as_posix().startswith("docs/evaluation")
    tables_of = settings() if not tasks else {}
    for language, block in blocks(text):
        tables = tomllib.loads(block) if language == "toml" else {}
        if "sources" in tables:  # a corpus's recipe
            _, problems = decode(CorpusRecipe, tables, "")
            assert not problems, "\n".join(map(str, problems))
            continue
        for name in tables.keys() & tables_of.keys():
            _, problems = decode(settings()[name], tables[name], name)
            found += [str(each) for each in problems if each.expected == "unknown key"]
            found += [str(each) for each in problems if each.expected == "has a new name"]
    written = re.findall(r"--set[ =]'?([a-z_.]+)=", text)
    stages = "|".join(settings().keys() - ({"data"} if tasks else set()))
    written += re.findall(rf"`((?:{stages})(?:\.[a-z_]+)+)(?: = [^`]*)?`", text)
    found += [key for key in written if key not in keys() and not is_metric(key)]
    assert not found, "\n".join(found)


@functools.cache
def source() -> str:
    return "\n".join(file.read_text() for file in (ROOT / "src").rglob("*.py"))


def is_metric(key: str) -> bool:
    """Whether the code writes a metric of that name."""
    name = key.split(".")[-1]
    if name in RENAMED_KEYS and "_" in name:
        return False
    return re.search(rf"[\"'._]{name}[\"'_{{]|f\"{name}", source()) is not None


def test_decisions_are_numbered_without_gaps_and_listed() -> None:
    folder = ROOT / "docs/decisions"
    names = sorted(file.name for file in folder.glob("0*.md"))
    assert [int(name[:3]) for name in names] == list(range(1, len(names) + 1))
    listed = (folder / "README.md").read_text()
    for name in names:
        assert (folder / name).read_text().startswith(f"# {name[:3]}: ")
        assert f"]({name})" in listed


def test_the_page_of_commands_explains_every_argument() -> None:
    pytest.importorskip("mkdocs")
    hooks = runpy.run_path(str(ROOT / "docs/hooks.py"))
    rows = re.findall(r"^\| `.*", hooks["commands_page"](), re.MULTILINE)
    assert len(rows) > 100
    assert [row for row in rows if row.endswith("|  |")] == []


@pages
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = re.findall(r"`(?:python )?([a-z_0-9]+(?:/[a-z_0-9]+)+\.py)", page.read_text())
    if page.name in ("architecture.md", "instructgpt.md"):
        named += re.findall(r"`([a-z_]+\.py)", page.read_text())
    folders = [ROOT / "src/lmsmith", ROOT]
    assert [name for name in named if not any((at / name).is_file() for at in folders)] == []
