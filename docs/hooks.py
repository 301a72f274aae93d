"""Pages of the site that are made from the code when it is built, so that none of them is old."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from lmsmith.cli import COMMANDS
from lmsmith.cli.recipes import all_settings
from lmsmith.core.settings import settings_as_markdown
from lmsmith.options import documented, read_docstring

ROOT = Path(__file__).resolve().parents[1]


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and leave decisions to the page that lists them."""
    pages = {
        "commands.md": commands_page(),
        "settings.md": settings_as_markdown(all_settings()),
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
        about, meanings, _ = read_docstring(documented(function))
        parts += ["", f"## lmsmith {command.name}", "", about.strip(), ""]
        parts += ["```console", *(f"$ {example}" for example in command.examples), "```", ""]
        rows = _argument_rows(inspect.signature(function), meanings)
        if rows:
            parts += ["| argument | default | meaning |", "|---|---|---|", *rows]
    return "\n".join(parts) + "\n"


def _argument_rows(signature: inspect.Signature, meanings: Mapping[str, str]) -> list[str]:
    rows = []
    for each in signature.parameters.values():
        meaning = meanings[each.name].replace("|", r"\|")
        positional = each.kind is not inspect.Parameter.KEYWORD_ONLY
        name = each.name.upper() if positional else f"--{each.name.strip('_').replace('_', '-')}"
        default = "" if each.default in (None, False, (), "") else f"`{each.default}`"
        if each.default is inspect.Parameter.empty:
            default = "required" if each.kind is not inspect.Parameter.VAR_POSITIONAL else ""
        rows.append(f"| `{name}` | {default} | {meaning} |")
    return rows


def changelog_page() -> str:
    """The repository's changelog, with links from the site's root."""
    return (ROOT / "CHANGELOG.md").read_text().replace("](docs/", "](")
