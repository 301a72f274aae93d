"""Pages of the site that are made from the code when it is built, so that none of them is old."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from lmsmith.cli import COMMANDS
from lmsmith.core.settings import settings_as_markdown
from lmsmith.stages.pipeline import recipe_settings

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and leave decisions to the page that lists them."""
    pages = {
        "commands.md": commands_page(),
        "settings.md": settings_as_markdown(recipe_settings()),
        "changelog.md": changelog_page(),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    for file in files:
        if file.src_uri.startswith("decisions/0"):
            file.inclusion = file.inclusion.NOT_IN_NAV
    return files


def commands_page() -> str:
    """Every command with its arguments, from the functions that the command line is made of."""
    parts = [
        "# Commands",
        "",
        "`lmsmith COMMAND --help` prints the same. `--debug` shows tracebacks.",
    ]
    for command in COMMANDS:
        function = command.load()
        text = inspect.getdoc(function) or ""
        about, _, arguments = text.partition("\nArgs:\n")
        parts += ["", f"## lmsmith {command.name}", "", about.strip(), ""]
        parts += ["```console", *(f"$ {example}" for example in command.examples), "```", ""]
        rows = _argument_rows(inspect.signature(function), inspect.cleandoc(arguments))
        if rows:
            parts += ["| argument | default | meaning |", "|---|---|---|", *rows]
    return "\n".join(parts) + "\n"


def _argument_rows(signature: inspect.Signature, described: str) -> list[str]:
    meanings = {
        found[1]: " ".join(found[2].split())
        for found in re.finditer(r"^(\w+): (.*(?:\n +.*)*)", described, re.MULTILINE)
    }
    rows = []
    for each in signature.parameters.values():
        meaning = meanings.get(each.name, "").replace("|", r"\|")
        if each.default is inspect.Parameter.empty:
            rows.append(f"| `{each.name.upper()}` | required | {meaning} |")
        else:
            shown = "" if each.default in (None, False, (), "") else f"`{each.default}`"
            rows.append(f"| `--{each.name.strip('_').replace('_', '-')}` | {shown} | {meaning} |")
    return rows


def changelog_page() -> str:
    """The repository's changelog, with links from the site's root."""
    return (ROOT / "CHANGELOG.md").read_text().replace("](docs/", "](")
