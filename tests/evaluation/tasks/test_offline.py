"""The hub's libraries are kept from asking it, and everything is as before afterwards."""

from __future__ import annotations

import http.server
import os
import socket
import ssl
import sys
import threading
import urllib.error
import urllib.request
from types import ModuleType

import pytest

from lmsmith.evaluation.tasks import sources
from lmsmith.evaluation.tasks.sources import (
    OFFLINE_VARIABLES,
    caches_alone,
    said_offline,
    why_offline,
)


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OFFLINE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.mark.parametrize("name", OFFLINE_VARIABLES)
def test_each_variable_says_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert said_offline() == ""
    for text in ("", "0", "no"):
        monkeypatch.setenv(name, text)
        assert said_offline() == ""
    for text in ("1", "on", "Yes", "TRUE"):
        monkeypatch.setenv(name, text)
        assert said_offline() == name


def test_what_is_loaded_and_what_is_not_yet_are_both_told(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = ModuleType("datasets.config")
    loaded.HF_HUB_OFFLINE = False  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets.config", loaded)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with caches_alone():
        assert loaded.HF_HUB_OFFLINE is True
        assert os.environ["HF_HUB_OFFLINE"] == os.environ["HF_DATASETS_OFFLINE"] == "1"
    assert loaded.HF_HUB_OFFLINE is False
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    assert "HF_DATASETS_OFFLINE" not in os.environ


def test_what_answers_in_another_tongue_is_no_hub(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def garble() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(1_000)
            connection.sendall(b"garbage\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=garble, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert "cannot be reached" in why_offline()
    monkeypatch.setenv("HF_ENDPOINT", "http://my hub")
    assert "cannot be reached" in why_offline()
    assert capsys.readouterr().err == ""


def test_a_certificate_that_only_other_libraries_know_is_theirs_to_judge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError(ssl.SSLCertVerificationError("no issuer"))

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert why_offline() == ""


@pytest.mark.parametrize(
    ("code", "said"), [(200, ""), (404, ""), (401, ""), (500, "500"), (503, "503")]
)
def test_a_hub_that_answers_is_asked(monkeypatch: pytest.MonkeyPatch, code: int, said: str) -> None:
    paths = list[str]()

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(code)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
        assert said in why_offline("api/datasets/a/b")
        assert bool(why_offline()) == bool(said)
        server.shutdown()
    assert paths == ["/api/datasets/a/b", "/"]


def test_a_hub_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "PATIENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        said = why_offline()
        assert "within 0.3 seconds" in said or "timed out" in said
    assert "cannot be reached" in why_offline()


def test_a_name_that_is_looked_up_for_long_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = threading.Event()

    def slow(*_: object, **__: object) -> None:
        asked.wait(30)
        raise OSError

    monkeypatch.setattr(sources, "PATIENCE", 0.1)
    monkeypatch.setattr(socket, "create_connection", slow)
    assert "does not answer within 0.1 seconds" in why_offline()
    asked.set()
