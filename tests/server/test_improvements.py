"""Improvements run in processes of their own: one at a time, watched, and found again."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from worlds import HTTP, Running, parrot, put_version, running

from lmsmith.catalogue import versions
from lmsmith.core.errors import UserError
from lmsmith.feedback.people import People
from lmsmith.feedback.store import Store
from lmsmith.improve import under_way
from lmsmith.server import improvements
from lmsmith.server.improvements import LOG_FILE, Improvements

SAYS = """
import sys, time
from pathlib import Path
print("stages: data, sft, gates", file=sys.stderr)
print("sft: training 1,200/2,400 tokens, loss 2.1, 1 h 02 min left", file=sys.stderr, flush=True)
while not Path(sys.argv[1]).exists():
    time.sleep(0.01)
print('{"version": {"word": "ours@2"}}')
sys.exit(0 if Path(sys.argv[1]).read_text() == "done" else 1)
"""


HANG = 600.0
"""Seconds that guard a hang: the server's commands give way to all else on a busy machine."""


def wait_for(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def flag(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Improvements say how far they are, and end once this file is there."""
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path))
    put_version("ours", 1, parrot())
    end = tmp_path / "end"

    def run(_: Improvements, words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", SAYS, str(end), *words], **options)

    monkeypatch.setattr(Improvements, "_run", run)
    return end


def begun(state: dict[str, Any] | None) -> bool:
    return state is not None and state["total"] > 0


def test_one_runs_at_a_time_and_outlives_its_server(flag: Path) -> None:
    first = Improvements()
    assert first.state("ours") is None
    assert first.start("ours", "ours", "ada")
    assert not first.start("ours", "ours", "ada")
    later = Improvements()  # of a server that was started again
    wait_for(lambda: begun(later.state("ours")))
    state = later.state("ours")
    assert state is not None
    log = state.pop("log")
    assert state == {
        "state": "running",
        "stage": "sft",
        "done": 1200,
        "total": 2400,
        "eta_seconds": 3720.0,
        "version": None,
        "begun": False,
    }
    assert log[0] == "stages: data, sft, gates"
    assert not later.start("ours", "ours", "ada")
    flag.write_text("done")
    wait_for(lambda: (later.state("ours") or {})["state"] == "done")
    assert (first.state("ours") or {})["version"] == "ours@2"
    flag.unlink()
    assert later.start("ours", "ours", "ada")  # once more
    assert (later.state("ours") or {})["version"] is None
    flag.write_text("done")
    wait_for(lambda: (later.state("ours") or {})["state"] == "done")


def test_a_folder_that_cannot_be_written_to_is_named(
    flag: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "file/home"))
    with pytest.raises(UserError, match="a part of this path is a file"):
        Improvements().start("ours", "ours", "ada")
    with pytest.raises(UserError, match="a part of this path is a file"):
        Improvements().ask_labelers("ours@2", "ours@1", 3)


def test_a_killed_improvement_has_failed(flag: Path) -> None:
    found = Improvements()
    assert found.start("ours", "ours", "ada")
    found._processes[0].kill()
    wait_for(lambda: (found.state("ours") or {})["state"] == "failed")
    assert found.start("ours", "ours", "ada")
    flag.write_text("done")
    wait_for(lambda: (found.state("ours") or {})["state"] == "done")


def test_one_that_was_interrupted_goes_on_or_is_dropped(flag: Path) -> None:
    """Also one of a command, of which the server has no log."""
    found, begun = Improvements(recipe="mine.toml"), versions.folder_of("ours") / versions.NEXT
    assert improvements.ROUND_FILE == under_way.ROUND_FILE
    begun.mkdir()
    (begun / improvements.ROUND_FILE).write_text("{}")
    state = found.state("ours") or {}
    assert (state["state"], state["begun"], state["version"]) == ("failed", True, None)
    assert found.start("ours", "ours", "ada", restart=True)
    words: Any = found._processes[0].args
    assert words[-4:] == ["--json", "--restart", "--recipe", "mine.toml"]
    (begun / improvements.ROUND_FILE).unlink()
    flag.write_text("done")
    wait_for(lambda: (found.state("ours") or {})["state"] == "done")
    assert not (found.state("ours") or {})["begun"]


@pytest.mark.parametrize(
    ("lines", "stage", "done", "seconds"),
    [
        (["stages: data, sft, gates"], "", 0, None),
        (["data: not run yet", "data: done in 0.1 s"], "data", 0, None),
        (["sft 6/6 steps, bits per byte 5.3, 5.8 s", "sft: done in 11 s"], "sft", 6, None),
        (["sft 6/6 steps, 5.8 s", "reward: 21 rankings are little data"], "reward", 0, None),
        (["ppo: PPO 3/12 steps, kl 0, 2 min 25 s left", "ppo: 4.1% end"], "ppo", 3, 145.0),
        (["gates 3/6 parts, 3.6 s"], "gates", 3, None),
        (["lmsmith: 1/2 of it is wrong"], "", 0, None),
    ],
)
def test_the_stage_is_read_from_the_log(
    lines: list[str], stage: str, done: int, seconds: float | None
) -> None:
    found = improvements._progress(lines)
    assert (found["stage"], found["done"], found["eta_seconds"]) == (stage, done, seconds)


def test_one_that_a_command_began_is_seen_and_stopped(flag: Path) -> None:
    assert under_way.AT_WORK + "/.lock" == improvements.AT_WORK
    folder = versions.folder_of("ours") / under_way.AT_WORK
    program = (
        "import sys; from pathlib import Path; from lmsmith.runs.locking import locked; "
        "from lmsmith.core.progress import QuietProgress\n"
        f"with locked(Path({str(folder)!r}), QuietProgress()): print('on', flush=True); input()"
    )
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "on\n"
        assert (Improvements().state("ours") or {})["state"] == "running"
        assert not Improvements().start("ours", "ours", "ada")
        assert Improvements().stop("ours")
        assert process.wait(60) == -signal.SIGTERM
    assert Improvements().state("ours") is None
    assert not Improvements().stop("ours")


def test_one_is_stopped_before_its_round_has_begun(flag: Path) -> None:
    found = Improvements()
    assert not found.stop("ours")
    assert found.start("ours", "ours", "ada")
    wait_for(lambda: begun(found.state("ours")))
    assert found.stop("ours")
    wait_for(lambda: (found.state("ours") or {})["state"] == "failed")
    wait_for(lambda: not found.stop("ours"))


@pytest.mark.parametrize(
    ("database", "options", "password"),
    [
        ("", [], {}),
        ("a b.db", ["--database", "a b.db"], {}),
        (
            "postgresql://ann:se:cret@host/name",
            ["--database", "postgresql://ann@host/name"],
            {"PGPASSWORD": "se:cret"},
        ),
    ],
)
def test_passwords_are_not_on_the_command_line(
    database: str, options: list[str], password: dict[str, str]
) -> None:
    assert improvements._database_options(database) == (options, password)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Running]:
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path))
    source = str(Path(__file__).parents[2] / "src")
    monkeypatch.setenv("PYTHONPATH", source)
    monkeypatch.setattr(improvements, "WAIT_SECONDS", HANG)
    put_version("ours", 1, parrot())
    with running(words=["ours"]) as found:
        yield found


def test_the_command_runs_and_says_what_is_missing(served: Running, tmp_path: Path) -> None:
    """The real one, on an empty database: it has nothing to learn from, and says so."""
    (tmp_path / "conversations.db").touch()
    path = f"{served.address}/api/versions/ours/improve"
    assert HTTP.get(path).json() is None
    started = HTTP.post(path, json={})
    assert (started.status_code, started.json()) == (202, {"state": "running"})
    again = HTTP.post(path, json={})
    assert (again.status_code, again.json()["error"]["code"]) == (409, "improvement_runs")
    stop = f"{served.address}/api/versions/ours/stop"
    wait_for(lambda: HTTP.get(path).json()["state"] != "running")
    found = HTTP.get(path).json()
    assert found["state"] == "failed"
    assert "nobody has judged anything" in " ".join(found["log"])
    stopped = HTTP.post(stop)
    assert (stopped.status_code, stopped.json()["error"]["code"]) == (409, "no_improvement")
    answer = HTTP.get(f"{served.address}/api/versions", timeout=HANG).json()
    judged = answer["models"][0]["judged"]
    assert judged["new"] == 0
    assert judged["too_little"]


def test_people_are_named_and_a_count_is_made_again_for_a_new_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, sqlite_store: Store
) -> None:
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path))
    token = People(sqlite_store).add("Ada", "admin")
    ada = sqlite_store.person("Ada").id
    found = [{"people": {ada: 40}, "bursts": {ada: 40}, "new": new} for new in (40, 0)]

    def run(_: Improvements, words: list[str], **options: Any) -> subprocess.Popen[bytes]:
        said = f"import json; print(json.dumps({found.pop(0)!r}))"
        return subprocess.Popen([sys.executable, "-c", said], **options)

    monkeypatch.setattr(Improvements, "_run", run)
    monkeypatch.setattr(improvements, "WAIT_SECONDS", HANG)
    put_version("ours", 1, parrot())
    with running(words=["ours"], store=sqlite_store) as served:

        def judged() -> Any:
            head = {"Authorization": f"Bearer {token}"}
            answer = HTTP.get(f"{served.address}/api/versions", headers=head, timeout=HANG).json()
            return answer["models"][0]["judged"]

        assert judged() == {"people": {"Ada": 40}, "bursts": {"Ada": 40}, "new": 40}
        assert judged()["new"] == 40
        put_version("ours", 2, parrot())
        assert judged()["new"] == 0


def test_a_model_without_versions_is_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def uncounted(*_: object) -> None:
        """A process of its own would count."""

    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path))
    monkeypatch.setattr(Improvements, "judged", uncounted)
    with running({"parrot": parrot(), "no name/": parrot()}) as served:
        (found,) = HTTP.get(f"{served.address}/api/versions").json()["models"]
        assert (found["name"], found["promoted"], found["versions"]) == ("parrot", None, [])
        assert found["improvement"] is None
        assert not (versions.folder_of("parrot") / LOG_FILE).exists()
