"""A promoted version takes the place of the one before, whose streams go on; what fails changes
nothing."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from worlds import (
    HTTP,
    LIMITS,
    SENTENCE,
    TOKENIZER,
    Running,
    parrot,
    put_version,
    running,
    said_by,
)

from lmsmith.catalogue import versions
from lmsmith.catalogue.versions import Promotion, Version
from lmsmith.feedback.people import People
from lmsmith.feedback.store import Store
from lmsmith.generation.requests import Request
from lmsmith.generation.settings import SamplingSettings
from lmsmith.improve.first_version import first_version
from lmsmith.models.folder import save_model
from lmsmith.server.engine import AsyncEngine
from lmsmith.server.improvements import Improvements
from lmsmith.server.models import Loader, ServedModel
from lmsmith.server.requests import ParsedRequest

OTHER = "what 你 do"
"""What version 2 says."""


@pytest.fixture
def ours(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Version 1 says one sentence for ever, version 2 another one once."""

    async def uncounted(*_: object) -> None:
        """A process of its own would count."""

    monkeypatch.setattr(Improvements, "judged", uncounted)
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path))
    put_version("ours", 1, parrot(for_ever=True))
    put_version("ours", 2, parrot(sentence=OTHER))


def slowly(engine: AsyncEngine) -> None:
    """A step of the first version takes a while, so that its stream lasts."""
    scheduler = engine.models["ours"].scheduler
    step = scheduler.step

    def slow() -> Any:
        time.sleep(0.005)
        return step()

    scheduler.step = slow  # type: ignore[method-assign]


@pytest.fixture
def served(ours: None) -> Iterator[Running]:
    with running(words=["ours"], prepare=slowly) as found:
        yield found


def wait_for(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def answered(served: Running, **body: Any) -> str:
    given = {"messages": said_by("hello"), "model": "ours", "temperature": 0, "max_tokens": 20}
    found = HTTP.post(f"{served.address}/v1/chat/completions", json=given | body).json()
    assert found["model"] == "ours"
    return str(found["choices"][0]["message"]["content"])


def streamed(served: Running, tokens: int) -> Iterator[str]:
    body = {
        "messages": said_by("hello"),
        "temperature": 0,
        "max_tokens": tokens,
        "stream": True,
    }
    with HTTP.stream("POST", f"{served.address}/v1/chat/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get(
                    "content", ""
                )


def listed(served: Running) -> dict[str, Any]:
    (found,) = HTTP.get(f"{served.address}/api/versions").json()["models"]
    assert found["name"] == "ours"
    return dict(found)


def promote(served: Running, word: str) -> dict[str, Any]:
    path = f"{served.address}/api/versions/ours/promote"
    response = HTTP.post(path, json={"version": word, "reason": "better"})
    assert response.status_code == 200, response.text
    return dict(response.json())


def test_a_stream_goes_on_across_a_switch(served: Running) -> None:
    stream = streamed(served, 400)
    said = [next(stream), next(stream)]
    assert promote(served, "ours@2") == {"promoted": "ours@2", "served": "ours@2", "problem": ""}
    assert answered(served) == OTHER
    assert len(served.engine.loaded) == 2  # the first one still writes
    said += stream
    text, once = "".join(said), SENTENCE
    assert text.startswith(once)
    assert len(text) > 100
    assert set(text) == set(once)
    wait_for(lambda: len(served.engine.loaded) == 1)
    assert answered(served) == OTHER
    rolled = HTTP.post(f"{served.address}/api/versions/ours/rollback", json={}).json()
    assert rolled["served"] == "ours@1"
    assert answered(served).startswith(SENTENCE)


def test_a_promotion_elsewhere_is_followed(served: Running) -> None:
    versions.promote("ours", 2, "me")
    wait_for(lambda: answered(served) == OTHER)
    names = [each["id"] for each in HTTP.get(f"{served.address}/v1/models").json()["data"]]
    assert names == ["ours"]


def test_a_clock_that_jumps_back_hides_no_promotion(served: Running) -> None:
    versions.promote("ours", 2, "me")
    os.utime(versions.folder_of("ours") / versions.LINEAGE_FILE, (1, 1))
    wait_for(lambda: answered(served) == OTHER)


def test_a_model_is_followed_once_it_has_become_the_first_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also after a restart with the same words, but not once its files are another model's."""
    monkeypatch.setenv("LMSMITH_HOME", str(tmp_path / "home"))
    folder = tmp_path / "run"
    save_model(folder / "model", parrot(), TOKENIZER, {})
    words = [f"ours={folder}"]
    with running(words=words, memory_bytes=0) as served:
        assert answered(served) == SENTENCE
        first_version(str(folder), "ours", "me")
        wait_for(lambda: served.engine.models["ours"].recorded == "ours@1")
        put_version("ours", 2, parrot(sentence=OTHER))
        assert promote(served, "ours@2")["served"] == "ours@2"
        assert answered(served) == OTHER
    with running(words=words) as served:
        assert answered(served) == OTHER
    with running(words=[f"other={folder}"]) as served:
        assert served.engine.models["other"].version is None
    later = time.time() + 100
    os.utime(folder / "model/config.json", (later, later))
    with running(words=words) as served:
        assert answered(served) == SENTENCE


def test_versions_of_another_model_are_not_followed(ours: None, tmp_path: Path) -> None:
    save_model(tmp_path / "model", parrot(), TOKENIZER, {})
    with running(words=[f"ours={tmp_path / 'model'}"]) as served:
        versions.set_trial("ours", 2, 1.0)
        assert promote(served, "ours@2")["promoted"] == "ours@2"
        assert served.engine.models["ours"].version is None
        assert answered(served) == SENTENCE


def test_a_fixed_version_is_served_for_good(ours: None) -> None:
    with running(words=["ours@2", "mine=ours"]) as served:
        assert list(served.engine.models) == ["ours@2", "mine"]
        assert [each.recorded for each in served.engine.models.values()] == ["ours@2", "ours@1"]
        promote(served, "ours@2")
        assert served.engine.models["mine"].recorded == "ours@2"
        versions.promote("ours", 1, "me")
        wait_for(lambda: served.engine.models["mine"].recorded == "ours@1")
        assert served.engine.models["ours@2"].recorded == "ours@2"


def test_a_request_that_chose_the_version_before_is_answered_by_it(served: Running) -> None:
    """The switch came between its prompt and its place in the queue."""
    engine = served.engine
    before = engine.models["ours"]
    promote(served, "ours@2")
    wait_for(lambda: before.key not in engine.loaded)
    prompt = [TOKENIZER.role_token("assistant")]
    parsed = ParsedRequest(
        id="late",
        model=before,
        prompts=[Request(prompt, SamplingSettings(9, 0.0), is_message=True)],
        cache_salt="",
    )

    async def ask() -> str:
        generation = engine.submit(parsed)
        await generation.finish()
        generation.close()
        return generation.replies[0].text

    loop = engine.thread._loop
    assert loop is not None
    said = asyncio.run_coroutine_threadsafe(ask(), loop).result(20)
    assert SENTENCE.startswith(said[:4])
    assert said
    wait_for(lambda: list(engine.loaded.values()) == [engine.models["ours"]])


def test_a_damaged_version_leaves_the_one_before(
    served: Running, caplog: pytest.LogCaptureFixture
) -> None:
    made = versions.version("ours", 2)
    file = made.path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with caplog.at_level(logging.ERROR, "lmsmith.server"):
        versions._append("ours", versions.lineage_of("ours"), Promotion(2, "promote", "x", "", ""))
        wait_for(lambda: "not the files" in listed(served)["problem"])
    assert "ours@1 goes on" in caplog.text
    assert listed(served)["served"] == "ours@1"
    assert listed(served)["promoted"] == "ours@2"
    assert answered(served).startswith(SENTENCE)
    file.write_bytes(content)
    assert promote(served, "ours@2")["served"] == "ours@2"
    assert answered(served) == OTHER


def test_what_is_served_stays_when_its_file_is_overwritten(served: Running) -> None:
    for number, said in ((1, SENTENCE), (2, OTHER)):
        promote(served, f"ours@{number}")
        with (versions.version("ours", number).path / "model.safetensors").open("r+b") as file:
            file.seek(-(1 << 16), os.SEEK_END)
            file.write(bytes(1 << 16))
        assert answered(served).startswith(said)


def test_a_version_without_a_record_is_not_served(served: Running) -> None:
    record = versions.version("ours", 2).folder / versions.VERSION_FILE
    moved = record.rename(record.with_suffix(".aside"))
    versions._append("ours", versions.lineage_of("ours"), Promotion(2, "promote", "x", "", ""))
    wait_for(lambda: "no such version" in listed(served)["problem"])
    assert answered(served).startswith(SENTENCE)
    moved.rename(record)
    (versions.folder_of("ours") / versions.LINEAGE_FILE).write_text("{")
    wait_for(lambda: "lineage.json" in listed(served)["problem"])
    assert answered(served).startswith(SENTENCE)


def test_both_versions_count_in_the_budget(served: Running) -> None:
    stream = streamed(served, 400)
    next(stream)
    promote(served, "ours@2")
    both = list(served.engine.loaded.values())
    assert len(both) == 2
    assert sum(each.bytes for each in both) <= 60_000_000
    assert list(stream)


def test_without_room_the_version_before_goes_on(
    ours: None, caplog: pytest.LogCaptureFixture
) -> None:
    with running(words=["ours"]) as served:
        (model,) = served.engine.models.values()
        alone = model.weight_bytes
        context = model.context * model.scheduler.model.config.cache_bytes_per_token(4)
    memory = alone + 2 * context
    with (
        caplog.at_level(logging.WARNING, "lmsmith.server"),
        running(words=["ours"], memory_bytes=memory) as served,
    ):
        assert "no room for a second version" in caplog.text
        found = promote(served, "ours@2")
        assert found["served"] == "ours@1"
        assert "--memory has" in found["problem"]
        assert answered(served).startswith(SENTENCE)
    assert "ours@1 goes on" in caplog.text


def test_every_version_has_a_cache_of_its_own(served: Running) -> None:
    caches = [served.engine.models["ours"].scheduler.cache]
    promote(served, "ours@2")
    caches.append(served.engine.models["ours"].scheduler.cache)
    assert caches[0] is not caches[1]
    body = {"messages": said_by("hello " * 40), "model": "ours", "max_tokens": 2}
    usage = HTTP.post(f"{served.address}/v1/chat/completions", json=body).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0


def test_versions_share_a_tokenizer_of_the_same_files(served: Running) -> None:
    """Parsing a large one would stop every stream."""
    first = served.engine.models["ours"].tokenizer
    promote(served, "ours@2")
    assert served.engine.models["ours"].tokenizer is first
    folder = versions.folder_of("ours") / versions.NEXT
    shutil.copytree(versions.version("ours", 2).path, folder / "model")
    file = folder / "model" / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text())), encoding="utf-8")  # in other bytes
    made = replace(
        versions.version("ours", 2), number=3, sha256=versions.hash_model(folder / "model")
    )
    versions.write_version(folder, made)
    versions.put_in_place(made)
    promote(served, "ours@3")
    assert served.engine.models["ours"].tokenizer is not first
    assert answered(served) == OTHER


def test_a_version_is_read_at_leisure_while_a_stream_runs(
    served: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int]] = []
    beside = Loader._beside

    def spied(self: Loader, version: Version, *arguments: Any) -> ServedModel:
        assert sys.getprofile() is not None  # it rests
        seen.append((served.engine.is_writing(), torch.get_num_threads()))
        return beside(self, version, *arguments)

    monkeypatch.setattr(Loader, "_beside", spied)
    stream = streamed(served, 400)
    next(stream)
    promote(served, "ours@2")
    assert seen == [(True, 1)]
    assert list(stream)


def test_metrics_and_readiness_during_a_switch(served: Running) -> None:
    stream = streamed(served, 200)
    next(stream)
    promote(served, "ours@2")
    text = HTTP.get(f"{served.address}/metrics").text
    assert 'lmsmith_replies_active{model="ours"} 1.0' in text
    assert HTTP.get(f"{served.address}/ready").status_code == 200
    assert list(stream)


def test_mistakes(served: Running) -> None:
    def status(name: str, what: str, **body: Any) -> tuple[int, str]:
        response = HTTP.post(f"{served.address}/api/versions/{name}/{what}", json=body)
        return response.status_code, response.json()["error"]["code"]

    assert status("ours", "promote", version="ours@9") == (404, "not_found")
    assert status("ours", "promote", version="theirs@1") == (404, "not_found")
    assert status("theirs", "promote", version="theirs@1") == (404, "not_found")
    assert status("theirs", "rollback") == (404, "not_found")
    assert status("ours", "rollback") == (409, "version_conflict")
    assert status("ours", "trial", version="ours@1") == (409, "version_conflict")
    assert status("ours", "trial", version="ours@2", share=2)[0] == 400
    (versions.version("ours", 2).path / "model.safetensors").write_bytes(b"x")
    assert status("ours", "promote", version="ours@2") == (409, "version_conflict")
    for path in ("theirs/improve", "theirs/feedback"):
        assert HTTP.get(f"{served.address}/api/versions/{path}").status_code == 404


def test_versions_are_for_admins(ours: None, sqlite_store: Store) -> None:
    people = People(sqlite_store)
    tokens = {role: people.add(role, role) for role in ("admin", "labeler", "user")}
    with running(words=["ours"], store=sqlite_store) as served:
        for role, token in tokens.items():
            for method, path in (
                ("GET", ""),
                ("GET", "/ours/improve"),
                ("GET", "/ours/feedback"),
                ("POST", "/ours/promote"),
                ("POST", "/ours/rollback"),
                ("POST", "/ours/trial"),
                ("POST", "/ours/improve"),
                ("POST", "/ours/stop"),
            ):
                if role == "admin" and method == "POST":
                    continue
                response = HTTP.request(
                    method,
                    f"{served.address}/api/versions{path}",
                    json={} if method == "POST" else None,
                    headers={"Authorization": f"Bearer {token}"},
                )
                assert response.status_code == (200 if role == "admin" else 403), path


SERVE = [sys.executable, "-m", "lmsmith", "serve", "ours", "--port", "0", "--threads", "1"]


def test_a_kill_during_a_switch_leaves_one_promoted_version(ours: None, tmp_path: Path) -> None:
    """The lineage names the new version before it is read; the next server serves it."""
    for promoted in (2, 1):
        with subprocess.Popen(
            [*SERVE, "--database", str(tmp_path / "feedback.db")],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        ) as process:
            assert process.stdout is not None
            line = next(line for line in process.stdout if "is ready" in line)
            port = line.split("/v1")[0].rpartition(":")[2]
            address = f"http://127.0.0.1:{port}"
            path = f"{address}/api/versions/ours"
            assert HTTP.get(f"{address}/v1/models").status_code == 200
            body = json.dumps({"version": f"ours@{promoted}"})
            curl = [
                sys.executable,
                "-c",
                "import sys, urllib.request as u; u.urlopen(u.Request(sys.argv[1], "
                "sys.argv[2].encode(), {'Content-Type': 'application/json'}))",
                f"{path}/promote",
                body,
            ]
            with subprocess.Popen(curl, stderr=subprocess.DEVNULL):
                wait_for(lambda number=promoted: versions.lineage_of("ours").promoted == number)  # type: ignore[misc]
                process.send_signal(signal.SIGKILL)
        assert versions.promoted("ours").number == promoted
        versions.verify(versions.promoted("ours"))
    with running(words=["ours"]) as served:
        assert served.engine.models["ours"].recorded == "ours@1"
        assert answered(served).startswith(SENTENCE)


def test_limits_are_kept_for_each_version(ours: None) -> None:
    """A full queue is full for both versions of a name."""
    limits = replace(LIMITS, streams=1, queue=1)
    with running(words=["ours"], limits=limits, prepare=slowly) as served:
        stream = streamed(served, 400)
        next(stream)
        promote(served, "ours@2")
        assert answered(served) == OTHER  # a row of its own
        assert list(stream)
