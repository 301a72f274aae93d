"""Behind Debian's nginx and Caddy with TLS and a sub-path, by the very blocks of docs/deploy.md."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from worlds import LIMITS, Running, parrot, running

from lmsmith.core.errors import UserError
from lmsmith.server.connections import ConnectionLimits
from lmsmith.server.engine import AsyncEngine
from lmsmith.server.proxy import checked_proxies, checked_root_path
from loopback import free_port

DOCS = Path(__file__).parents[2] / "docs/deploy.md"
NAME = "chat.example.com"
ASK = [{"role": "user", "content": "tea?"}]


@dataclass
class Fronted:
    """A server and the proxy in front of it."""

    served: Running
    port: int
    folder: Path

    def client(self, address: str = "127.0.0.2", **headers: str) -> httpx.Client:
        """A browser at an address of its own, which calls the server by its name."""
        transport = httpx.HTTPTransport(verify=False, local_address=address)
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.port}/chat",
            headers={"host": f"{NAME}:{self.port}", **headers},
            transport=transport,
            timeout=30,
        )


def block(kind: str, pattern: str, changes: Sequence[tuple[str, str]]) -> str:
    """A file of the docs, changed to the addresses and the certificate of the test."""
    (found,) = re.findall(rf"```{kind}\n({pattern}.*?)```", DOCS.read_text(), re.DOTALL)
    for before, after in changes:
        assert before in found
        found = found.replace(before, after)
    return str(found)


def before_nginx(folder: Path, port: int, server: str) -> list[str]:
    """The command of an nginx that needs no root: its files in a folder."""
    changes = [("listen 443", f"listen {port}"), ("http://127.0.0.1:8000", server)]
    changes.append((f"/etc/letsencrypt/live/{NAME}", str(folder)))
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{ worker_connections 64; }}\n"
        f"http {{ access_log off;\n{temporary}{block('nginx', '', changes)} }}\n"
    )
    return ["-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", "stderr"]


def before_caddy(folder: Path, port: int, server: str) -> list[str]:
    """The command of a Caddy with the test's certificate. Its clients call by address, without the
    name that TLS would tell it."""
    certificate = f"tls {folder}/fullchain.pem {folder}/privkey.pem"
    changes = [(f"{NAME} {{", f"{NAME}:{port} {{\n    {certificate}")]
    changes.append(("127.0.0.1:8000", server.removeprefix("http://")))
    (folder / "Caddyfile").write_text(
        f"{{\n    admin off\n    auto_https disable_redirects\n    default_sni {NAME}\n"
        f"    storage file_system {folder}\n}}\n{block('', NAME, changes)}"
    )
    return ["run", "--config", str(folder / "Caddyfile")]


PROXIES = {"nginx": before_nginx, "caddy": before_caddy}


def make_certificate(folder: Path) -> None:
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    words += ["-nodes", "-days", "2", "-subj", f"/CN={NAME}"]
    words += ["-keyout", str(folder / "privkey.pem"), "-out", str(folder / "fullchain.pem")]
    subprocess.run(words, check=True, capture_output=True)


@contextmanager
def proxy_before(served: Running, name: str, folder: Path) -> Iterator[Fronted]:
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if program is None or shutil.which("openssl") is None:
        pytest.skip(f"{name} or openssl is not here: apt-get install {name} openssl")
    make_certificate(folder)
    port = free_port()
    command = [program, *PROXIES[name](folder, port, served.address)]
    home = {"HOME": str(folder), "PATH": os.environ["PATH"]}
    with (
        (folder / "said").open("wb") as said,
        subprocess.Popen(command, stdout=said, stderr=said, env=home) as process,
    ):
        try:
            wait_for(lambda: answers(port) or process.poll() is not None)
            assert process.poll() is None, (folder / "said").read_text()
            yield Fronted(served, port, folder)
        finally:
            process.terminate()
            process.wait(10)


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture(scope="module")
def gate() -> Gate:
    return Gate()


@pytest.fixture(scope="module", params=PROXIES)
def fronted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, gate: Gate
) -> Iterator[Fronted]:
    folder = tmp_path_factory.mktemp(request.param)
    options = {"token": "secret", "root_path": "/chat", "proxies": ("127.0.0.1",)}
    models = {"parrot": parrot(for_ever=True, sentence="what rain, said")}
    with (
        running(models, LIMITS, gate.before, hosts=(NAME,), **options) as served,
        proxy_before(served, request.param, folder) as found,
    ):
        yield found


@pytest.fixture
def browser(fronted: Fronted) -> Iterator[httpx.Client]:
    with fronted.client() as client:
        yield client


BEARER = {"authorization": "Bearer secret"}


class Gate:
    """Lets the engine write, when it is closed, a few tokens ahead of a reader."""

    def __init__(self) -> None:
        self.open, self._permits = True, threading.Semaphore(0)

    def before(self, engine: AsyncEngine) -> None:
        scheduler = engine.models["parrot"].scheduler
        step = scheduler.step

        def gated() -> Any:
            time.sleep(0.003)
            if not self.open:
                self._permits.acquire(timeout=5)
            return step()

        scheduler.step = gated  # type: ignore[method-assign]

    @contextmanager
    def closed(self, ahead: int) -> Iterator[Callable[[], None]]:
        """Yields what lets one step more pass."""
        self._permits, self.open = threading.Semaphore(ahead), False
        try:
            yield self._permits.release
        finally:
            self.open = True
            self._permits.release()


def stream_of(client: httpx.Client, tokens: int) -> Any:
    body = {"model": "parrot", "messages": ASK, "stream": True, "max_tokens": tokens}
    return client.stream("POST", "/v1/chat/completions", json=body, headers=BEARER)


def test_a_stream_comes_token_by_token(browser: httpx.Client, gate: Gate) -> None:
    """The engine is never more than eight tokens ahead of the reader: whatever a proxy held back
    would hold up both."""
    read = 0
    began = time.monotonic()
    with gate.closed(8) as another, stream_of(browser, 60) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                read += 1
                another()
    assert read > 60
    assert time.monotonic() - began < 5


def test_who_hangs_up_frees_the_slot(fronted: Fronted, browser: httpx.Client) -> None:
    with stream_of(browser, 300) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        next(lines)  # kept, since httpx hangs up with the last reference to it
        assert fronted.served.engine.generations
    wait_for(lambda: not fronted.served.engine.generations, 2)
    text = browser.get("/metrics", headers=BEARER).text
    assert 'lmsmith_requests_cancelled_total{model="parrot"} 1.0' in text


def test_who_hangs_up_without_a_stream_frees_the_slot_too(
    fronted: Fronted, browser: httpx.Client
) -> None:
    body = {"model": "parrot", "messages": ASK, "max_tokens": 400}
    with pytest.raises(httpx.ReadTimeout):
        browser.post("/v1/chat/completions", json=body, headers=BEARER, timeout=0.2)
    wait_for(lambda: not fronted.served.engine.generations, 2)
    text = browser.get("/metrics", headers=BEARER).text
    assert 'lmsmith_requests_cancelled_total{model="parrot"} 2.0' in text


def test_the_clients_own_address_counts(fronted: Fronted, caplog: pytest.LogCaptureFixture) -> None:
    """One who guesses is delayed, whatever address they claim; nobody else is."""
    caplog.set_level(logging.WARNING, "lmsmith.server")
    for number in range(3):
        claimed = {"x-forwarded-for": f"192.0.2.{number}, 127.0.0.1"}
        with fronted.client("127.0.0.3", **claimed) as guesser:
            wrong = {"authorization": "Bearer wrong"}
            assert guesser.get("/v1/models", headers=wrong).status_code == 401
    with fronted.client("127.0.0.4") as other:
        other.get("/v1/models", headers={"authorization": "Bearer wrong"})
    found = re.findall(r"a wrong token came from (\S+), number (\d)", caplog.text)
    assert found == [("127.0.0.3", "1"), ("127.0.0.3", "2"), ("127.0.0.3", "3"), ("127.0.0.4", "1")]


def test_only_a_trusted_proxys_word_counts(
    fronted: Fronted, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "lmsmith.server")
    said = {"x-forwarded-for": "192.0.2.9", "x-forwarded-proto": "https", "host": NAME}
    transport = httpx.HTTPTransport(local_address="127.0.0.5")
    with httpx.Client(base_url=fronted.served.address, transport=transport, headers=said) as past:
        past.get("/chat/v1/models", headers={"authorization": "Bearer wrong"})
        answer = past.post("/chat/api/session", json={"token": "secret"})
    assert "a wrong token came from 127.0.0.5, number 1" in caplog.text
    assert "secure" not in answer.headers["set-cookie"].lower()


def test_cookies_are_of_tls_and_of_the_sub_path(browser: httpx.Client) -> None:
    answer = browser.post("/api/session", json={"token": "secret"})
    words = {word.strip().lower() for word in answer.headers["set-cookie"].split(";")}
    assert {"secure", "httponly", "samesite=strict", "path=/chat/"} <= words
    own = {"cookie": answer.headers["set-cookie"].partition(";")[0]}
    assert browser.get("/api/session", headers=own).json()["signed_in"]
    ended = browser.delete("/api/session", headers=own).headers["set-cookie"].lower()
    assert "path=/chat/" in ended
    assert "max-age=0" in ended
    assert not browser.get("/api/session", headers=own).json()["signed_in"]


def test_pages_of_the_proxys_name_alone_may_ask(fronted: Fronted, browser: httpx.Client) -> None:
    origins = {f"https://{NAME}:{fronted.port}": 200, f"http://{NAME}:{fronted.port}": 403}
    for origin, status in {**origins, "https://elsewhere.example": 403}.items():
        answer = browser.post("/api/session", json={"token": "secret"}, headers={"origin": origin})
        assert answer.status_code == status, origin


def test_the_page_and_its_files_are_below_the_path(browser: httpx.Client) -> None:
    from lmsmith.server import pages

    if not pages.assets():
        pytest.skip("the page is not built: python hatch_build.py")
    for path in ("", "/", "/c/1234", "/label"):
        found = browser.get(path)
        assert found.status_code == 200
        assert '<base href="/chat/"' in found.text
    addresses = re.findall(r'(?:src|href)="([^"]+)"', found.text)
    files = [each for each in addresses if "assets" in each]
    assert len(files) >= 3
    for each in files:
        assert browser.get(each.removeprefix(".")).status_code == 200
    for path in ("/health", "/ready"):
        assert browser.get(path).json() == {"status": "ok"}


@pytest.mark.parametrize("path", ["/health", "/chat/health"])
def test_a_proxy_may_remove_the_path(fronted: Fronted, path: str) -> None:
    answer = httpx.get(f"{fronted.served.address}{path}", headers={"host": NAME}, trust_env=False)
    assert answer.status_code == 200
    other = f"{fronted.served.address}/chatter/health"
    refused = httpx.get(other, headers={"host": NAME, **BEARER}, trust_env=False)
    assert refused.status_code == 404


def test_a_proxy_is_one_address_with_everybodys_connections() -> None:
    limits = ConnectionLimits.of_system(("10.0.0.0/8",))
    assert limits.proxies == ("10.0.0.0/8",)


@pytest.mark.parametrize(
    ("path", "found"), [("", ""), ("/", ""), ("/chat/", "/chat"), ("/a/b-c", "/a/b-c")]
)
def test_sub_paths(path: str, found: str) -> None:
    assert checked_root_path(path) == found


@pytest.mark.parametrize("path", ["chat", "/a//b", "/..", "/a b", '/"', "/v1", "/api/x", "/c"])
def test_no_sub_path(path: str) -> None:
    with pytest.raises(UserError, match="--root-path"):
        checked_root_path(path)


def test_proxies_are_addresses() -> None:
    assert checked_proxies(["127.0.0.1", "[::1]", "10.1.0.0/16"]) == (
        "127.0.0.1", "::1", "10.1.0.0/16",
    )  # fmt: skip
    for wrong in ("*", "proxy.example", "10.0.0.1/8"):
        with pytest.raises(UserError, match="--trusted-proxy"):
            checked_proxies([wrong])
