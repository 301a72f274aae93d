"""Two machines train one model by the command of docs/gpus.md.

They are namespaces of Linux on this machine: each has its own network, its own name and its own
table of names, and a cable joins them. Nothing of one can reach the other on a loopback address.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from test_parallel import environment, figures, write_recipe

from lmsmith import cli

DOCS = Path(__file__).parents[2] / "docs/gpus.md"
NAMES = ("one", "two")
OWN = ["unshare", "--net", "--mount", "--uts"]
BEGIN = """
hostname {name}; mount --bind hosts /etc/hosts; read cable
ip address add {address}/24 dev cable && ip link set cable up && ip link set lo up
exec {command}
"""


def refusal() -> str:
    """Why there can be no namespaces here; empty if there can."""
    if not (shutil.which("ip") and shutil.which("unshare")):
        return "ip or unshare is not here: apt-get install iproute2 util-linux"
    tried = [*OWN, "ip", "link", "add", "end", "type", "veth", "peer", "name", "other"]
    done = subprocess.run(tried, capture_output=True, text=True)
    return f"no namespaces without more rights: {done.stderr.strip()}" if done.returncode else ""


def address(name: str) -> str:
    return f"10.77.0.{1 + NAMES.index(name)}"


def documented() -> str:
    """The docs' command, for one processor a machine and a small recipe."""
    text = re.findall(r"\$ (torchrun --nnodes 2 .*?)\n```", DOCS.read_text(), re.DOTALL)[0]
    for before, after in (
        ("\\\n", ""),
        ("torchrun", f"{sys.executable} -m torch.distributed.run"),
        ("--nproc-per-node 8", "--nproc-per-node 1"),
        ("HOST", NAMES[0]),
        ("evening", "own.toml"),
        ("/shared/runs/one", "both --quiet --json"),
    ):
        assert before in text
        text = text.replace(before, after)
    return text


@contextmanager
def machine(name: str, command: str, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """One that begins the command when its cable is in, which standard input tells it."""
    script = BEGIN.format(name=name, address=address(name), command=command)
    with subprocess.Popen(
        [*OWN, "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env=environment(),
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def in_namespaces(process: subprocess.Popen[str]) -> bool:
    own, theirs = (Path(f"/proc/{each}/ns/net").readlink() for each in ("self", process.pid))
    return own != theirs


def test_two_machines_train_as_one_process_does(tmp_path: Path) -> None:
    if reason := refusal():
        pytest.skip(reason)
    write_recipe(tmp_path, "checkpoint_seconds = 1e9")
    recipe = tmp_path / "own.toml"
    recipe.write_text(recipe.read_text().replace("12_800", "1_280"))
    (tmp_path / "hosts").write_text("".join(f"{address(name)} {name}\n" for name in NAMES))
    with ExitStack() as both:
        machines = [both.enter_context(machine(each, documented(), tmp_path)) for each in NAMES]
        while not all(map(in_namespaces, machines)):
            time.sleep(0.01)
        ends = [["cable", "netns", str(each.pid)] for each in machines]
        cable = ["ip", "link", "add", *ends[0], "type", "veth", "peer", "name", *ends[1]]
        subprocess.run(cable, check=True)
        for each in machines:
            assert each.stdin is not None
            each.stdin.write("in\n")
            each.stdin.flush()
        said = [each.communicate(timeout=100) for each in machines]
    assert [each.returncode for each in machines] == [0, 0], said
    (spoke,) = [out for out, _ in said if out]
    assert json.loads(spoke)["stages"]["pretrain"]["metrics"]["steps"] == 20
    record = json.loads((tmp_path / "both/pretrain/stage.json").read_text())
    assert record["machine"]["processes"] == 2
    words = ["run", str(recipe), "--folder", str(tmp_path / "alone"), "--quiet", "--json"]
    assert cli.main(words) == 0
    together, alone = (figures(tmp_path / name / "pretrain") for name in ("both", "alone"))
    for one, other in zip(alone, together, strict=True):
        assert set(one) == set(other)
        for name, value in one.items():
            assert other[name] == pytest.approx(value, rel=5e-5, abs=5e-6), (one["step"], name)
