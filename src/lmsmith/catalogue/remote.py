"""A model behind an OpenAI-compatible server: its address, and requests to it over HTTP.

The address is given at the start, by the one who runs lmsmith, as ``openai:URL#MODEL``. The key
comes from the environment. Nothing that a user of our server sends reaches an address.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import json
import math
import operator
import os
import random
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from lmsmith.core.errors import UserError
from lmsmith.core.terminal import in_one_line
from lmsmith.core.text import encodable
from lmsmith.tokenizers import Tokenizer

PREFIX = "openai:"
KEY = "OPENAI_API_KEY"
"""Environment variable with the key."""

BYTES_PER_TOKEN = 4
"""UTF-8 bytes of a token, about, where its server counts none."""

UNKNOWN_CONTEXT = 131_072
"""Tokens of a context whose server does not name it: the server refuses what is too long."""

BYTES_OF_TOKENS = 256 + 5
"""Size of a vocabulary of single bytes and control tokens."""

EVENT_FIELDS = (b"data", b"event", b"id", b"retry", b"")
"""What the lines of server-sent events begin with; nothing before the colon is a comment."""

MOST_BODY, MOST_MESSAGE = 8 << 20, 300
"""Bytes of a response, or of one event of a stream; characters of a message."""

LONGEST_WAIT = 30.0
"""Longest wait before a retry, seconds, whatever ``Retry-After`` says."""

MOST_RETRY = 86_400
"""Largest ``Retry-After`` that is passed on, seconds."""

HIDDEN = 8
"""Characters of the key in a row that no message shows."""


class RemoteError(UserError):
    """The other server refused a request, failed, or was not reached.

    Attributes:
        status: HTTP status for our own client.
        code: for programs, such as ``upstream_timeout``.
        retry_after: seconds after which a client may try again; 0 if unknown.
    """

    def __init__(
        self, problem: str, fix: str = "", *, status: int = 502, code: str, retry_after: int = 0
    ) -> None:
        super().__init__(problem, fix)
        self.status, self.code, self.retry_after = status, code, retry_after


class Cancelled(Exception):
    """The request was cancelled here."""


@dataclass(frozen=True)
class Patience:
    """Limits of a request, in seconds.

    Attributes:
        connect: for a connection.
        read: between two pieces of a response.
        retries: further tries, before a response has begun.
        wait: before the first retry; doubled for each one after.
    """

    connect: float = 10.0
    read: float = 300.0
    retries: int = 4
    wait: float = 0.5


@dataclass(frozen=True)
class RemoteModel:
    """A model behind another server.

    Attributes:
        url: of the API, such as ``http://127.0.0.1:8000/v1``.
        model: its name there.
        key: sent as the bearer token if it is not empty.
        context_tokens: most tokens of prompt and reply; None if its server does not say.
        patience: limits of a request.
    """

    url: str
    model: str
    key: str = field(default="", repr=False)
    context_tokens: int | None = None
    patience: Patience = Patience()

    @property
    def word(self) -> str:
        """What commands call it."""
        return f"{PREFIX}{self.url}#{self.model}"

    @property
    def tokenizer(self) -> Tokenizer:
        """A vocabulary of bytes and roles, in which prompts are kept until they are sent."""
        return byte_tokenizer()

    @property
    def context(self) -> int:
        """Most tokens of `tokenizer` in a prompt, about: UTF-8 bytes."""
        return BYTES_PER_TOKEN * (self.context_tokens or UNKNOWN_CONTEXT)


@functools.cache
def byte_tokenizer() -> Tokenizer:
    """One token for each byte, and lmsmith's own control tokens."""
    return Tokenizer.train([], BYTES_OF_TOKENS)


def is_address(word: object) -> bool:
    """Whether a model's word is the address of another server."""
    return str(word).startswith(PREFIX)


def find_remote(word: str, patience: Patience | None = None) -> RemoteModel:
    """The model of ``openai:URL`` or ``openai:URL#MODEL``; its server is asked which it has.

    Raises:
        UserError: the address is wrong, nobody answers there, the key is refused, or the server has
            no such model, or several and none is named.
    """
    url, _, name = word.removeprefix(PREFIX).partition("#")
    url = url.rstrip("/")
    with contextlib.suppress(ValueError):  # of a port or a host
        parts = urlsplit(url)
        if parts.username or parts.password:
            problem = f"{PREFIX}{parts.scheme}://{parts.hostname}: a password in the address"
            raise UserError(problem, f"give the key by the environment: {KEY}=…")
        if can_be_asked(url):
            return _found(RemoteModel(url, name, _key(), None, patience or Patience()))
    example = f"write {PREFIX}http://127.0.0.1:8000/v1, or {PREFIX}https://HOST/v1#MODEL"
    raise UserError(f"{in_one_line(word)}: this is no address of a model server", example)


def can_be_asked(url: str) -> bool:
    """Whether HTTP can send a request to the address."""
    with contextlib.suppress(ValueError):  # of a port or a host
        parts = urlsplit(url)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            parts.hostname.encode("idna")
            return url.isprintable() and " " not in url and (parts.path + parts.query).isascii()
    return False


def _key() -> str:
    """The key of the environment. Raises UserError for one that no header can hold."""
    key = os.environ.get(KEY, "")
    if key.isascii() and key.isprintable() and " " not in key:
        return key
    problem = f"{KEY}: the key has a space, a line end or another character that no key has"
    raise UserError(problem, f"set {KEY} again, to the key alone")


def is_remote(word: str) -> bool:
    """Whether a word names a model behind another server: ``openai:URL``, ``NAME=openai:URL``."""
    return is_address(word) or bool(word.rpartition(f"={PREFIX}")[0])


def split_remote(words: Sequence[str]) -> tuple[list[str], dict[str, RemoteModel]]:
    """The words of models of this machine, and the models behind other servers by name.

    Raises:
        UserError: a server does not answer, or has no such model; two have one name.
    """
    local, found = list[str](), dict[str, RemoteModel]()
    for word in words:
        if not is_remote(word):
            local.append(word)
            continue
        name, _, address = word.rpartition(f"={PREFIX}")
        remote = find_remote(PREFIX + address if name else word)
        name = name or remote.model.rsplit("/", 1)[-1]
        if name in found:
            raise UserError(f"two models are called {name}", f"name one: other={word}")
        found[name] = remote
    return local, found


def _found(asked: RemoteModel) -> RemoteModel:
    where, start = f"{PREFIX}{asked.url}", "start that server first, and check the address"
    try:
        listed = Call(asked, "/models", None).result()
    except RemoteError as error:
        if error.code == "upstream_key":
            what = "refuses the key" if asked.key else "asks for a key"
            raise UserError(f"{where}: the server {what}", f"set {KEY} to its key") from error
        raise UserError(f"{where}: {error.problem}", error.fix or start) from error
    rows = listed.get("data") if isinstance(listed, dict) else None
    rows = [each for each in rows or [] if isinstance(each, dict) and each.get("id")]
    names = [encodable(in_one_line(str(each["id"]))) for each in rows]
    if not names:
        raise UserError(f"{where}: the server lists no model", "the address usually ends in /v1")
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if names[20:] else "")
    if not asked.model and len(names) > 1:
        raise UserError(f"{where}: it has several models: {shown}", f"name one: {where}#{names[0]}")
    name = asked.model or names[0]
    if name not in names:
        raise UserError(f"{where}: no model {name!r} there", f"it has: {shown}")
    return RemoteModel(
        asked.url, name, asked.key, _context_of(rows[names.index(name)]), asked.patience
    )


def _context_of(row: dict[str, Any]) -> int | None:
    """As vLLM and lmsmith name it, or llama.cpp's server."""
    meta = row.get("meta")
    given = row.get("max_model_len") or (meta.get("n_ctx") if isinstance(meta, dict) else None)
    return given if isinstance(given, int) and given > 0 else None


class Call:
    """One request to the server, which another thread may cancel.

    Args:
        model: gives address, key and limits.
        path: after the URL.
        body: is posted as JSON; None gets.
    """

    def __init__(self, model: RemoteModel, path: str, body: dict[str, Any] | None) -> None:
        self._model, self._body = model, body
        parts = urlsplit(model.url + path)
        self._path = parts.path + (f"?{parts.query}" if parts.query else "")
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self._connection = kind(parts.hostname or "", parts.port, timeout=model.patience.connect)
        self._socket: socket.socket | None = None
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """End it: a thread that waits for the server wakes up, and the server sees a hang-up."""
        self._cancelled.set()
        open_socket = self._socket
        if open_socket is not None:
            with contextlib.suppress(OSError, ValueError):
                open_socket.shutdown(socket.SHUT_RDWR)

    def result(self) -> Any:
        """The JSON of the response.

        Raises:
            RemoteError: there is none.
            Cancelled: by `cancel`.
        """
        with contextlib.closing(self._connection), self._explained():
            content = self._begun().read(MOST_BODY + 1)
            _require_whole(content)
            found = _json(content)
            if _is_error(found):
                raise self._failed(found)
            return found

    def text(self) -> str:
        """The response as it is, which need not be JSON.

        Raises:
            RemoteError: there is none.
            Cancelled: by `cancel`.
        """
        with contextlib.closing(self._connection), self._explained():
            return self._begun().read(MOST_BODY).decode("utf-8", "replace")

    def events(self) -> Iterator[dict[str, Any]]:
        """The objects of a response of server-sent events, up to ``[DONE]``.

        Some servers end a reply without it: one is whole once there is a ``finish_reason``.

        Raises:
            RemoteError: the server fails, also in the middle.
            Cancelled: by `cancel`.
        """
        with contextlib.closing(self._connection), self._explained():
            response, came, is_whole = self._begun(), False, False
            page = bytearray()  # in place of a stream
            while line := self._line(response, is_whole):
                data = line[5:].strip() if line.startswith(b"data:") else b""
                if data == b"[DONE]":
                    return
                came = came or line.partition(b":")[0] in EVENT_FIELDS
                if not came:
                    page += line
                    _require_whole(page)
                if not data:
                    continue
                if not line.endswith(b"\n") and is_whole:  # a last event, of counts, was cut
                    return
                event = _json(data)
                if not isinstance(event, dict):
                    raise _not_json()
                if _is_error(event):
                    raise self._failed(event)
                is_whole = is_whole or _ends(event)
                yield event
            if came and not is_whole:
                raise _cut()
            if not is_whole:
                raise self._no_stream(response, bytes(page))

    def _line(self, response: http.client.HTTPResponse, is_whole: bool) -> bytes:
        """The next line; none if the connection fails after a whole reply."""
        try:
            line = response.readline(MOST_BODY + 1)
            _require_whole(line)
            return line
        except (OSError, http.client.HTTPException):
            if is_whole and not self._cancelled.is_set():
                return b""
            raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """What fails on the way is a RemoteError; whatever fails after `cancel` is Cancelled."""
        try:
            yield
        except RemoteError:
            raise
        except TimeoutError as error:
            if self._cancelled.is_set():
                raise Cancelled from error
            problem = f"the model's server sent nothing for {self._model.patience.read:g} seconds"
            raise RemoteError(problem, status=504, code="upstream_timeout") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            if self._cancelled.is_set():
                raise Cancelled from error
            if isinstance(
                error, (ValueError, http.client.InvalidURL)
            ):  # whose text may have the key
                raise _unsendable() from None
            raise _cut() from error

    def _begun(self) -> http.client.HTTPResponse:
        """The response, once its status is 200; tried again while that may help."""
        wait = self._model.patience.wait
        for left in range(self._model.patience.retries, -1, -1):
            failure = self._try()
            if isinstance(failure, http.client.HTTPResponse):
                return failure
            may_pass = failure.code in ("upstream_unreachable", "upstream_busy", "upstream_failed")
            if self._cancelled.is_set():
                raise Cancelled
            if not left or not may_pass or failure.retry_after > LONGEST_WAIT:
                raise failure
            pause = max(failure.retry_after, wait * random.uniform(0.75, 1.25))
            if self._cancelled.wait(min(LONGEST_WAIT, pause)):
                raise Cancelled
            wait *= 2
        raise AssertionError

    def _try(self) -> http.client.HTTPResponse | RemoteError:
        """One try: the response of status 200, or the failure."""
        connection, limits = self._connection, self._model.patience
        try:
            connection.connect()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            reason = "no answer" if isinstance(error, TimeoutError) else _reason(error)
            problem = f"the model's server cannot be reached ({reason})"
            return RemoteError(problem, code="upstream_unreachable")
        self._socket = connection.sock
        if self._cancelled.is_set():  # before there was a socket to shut
            connection.close()
            raise Cancelled
        connection.sock.settimeout(limits.read)
        headers = {"Accept": "text/event-stream, application/json", "Connection": "close"}
        if self._model.key:
            headers["Authorization"] = f"Bearer {self._model.key}"
        if self._body is None:
            connection.request("GET", self._path, headers=headers)
        else:
            headers["Content-Type"] = "application/json"
            connection.request("POST", self._path, json.dumps(self._body).encode(), headers)
        response = connection.getresponse()
        if response.status == 200:
            return response
        content: Any = None
        with contextlib.suppress(RemoteError, OSError, http.client.HTTPException):
            content = _json(response.read(MOST_BODY))
        failure = self._refused(response.status, content, _retry_after(response.headers))
        connection.close()
        return failure

    def _refused(self, status: int, content: Any, retry: int = 0) -> RemoteError:
        """The failure of a status and what the server says with it; never the key."""
        said = self._message(content)
        if status in (401, 403):
            problem = "the model's server refuses the key of this one"
            return RemoteError(problem, "its operator sets the right key", code="upstream_key")
        if status == 429:
            problem = "the model's server has too many requests; try again later"
            return RemoteError(problem, status=429, code="upstream_busy", retry_after=retry or 1)
        if status in (400, 413, 422):
            code = _error(content).get("code") or _error(content).get("type")
            words = said.lower()
            too_long = code in ("context_length_exceeded", "exceed_context_size_error") or (
                "context" in words and any(w in words for w in ("length", "size", "exceed", "long"))
            )
            code = "context_length_exceeded" if too_long else "upstream_refused"
            return RemoteError(f"the model's server refuses: {said}", status=400, code=code)
        if status in (502, 503, 504):
            problem = f"the model's server is not available (status {status})"
            return RemoteError(problem, code="upstream_failed", retry_after=retry)
        problem = f"the model's server answers with status {status}" + f": {said}" * bool(said)
        return RemoteError(problem, code="upstream_error")

    def _failed(self, content: Any) -> RemoteError:
        """The failure that a server says with status 200, in a stream or in its place."""
        status = _error(content).get("code")
        if isinstance(status, int) and 400 <= status < 500:
            return self._refused(status, content)
        problem = f"the model's server failed: {self._message(content) or 'it does not say why'}"
        return RemoteError(problem, code="upstream_error")

    def _no_stream(self, response: http.client.HTTPResponse, page: bytes) -> RemoteError:
        """The failure where a page or JSON comes in place of a stream."""
        with contextlib.suppress(RemoteError):
            if _is_error(content := _json(page)):
                return self._failed(content)
        kind = in_one_line(response.headers.get("Content-Type") or "no Content-Type")[:60]
        problem = f"the model's server sent no event stream ({kind})"
        fix = "its operator checks the address, and that the server can stream"
        return RemoteError(problem, fix, code="upstream_invalid")

    def _message(self, content: Any) -> str:
        found = _error(content).get("message")
        text = encodable(in_one_line(found if isinstance(found, str) else ""))
        text = without_key(text[: 4 * MOST_MESSAGE], self._model.key)
        return text if len(text) <= MOST_MESSAGE else f"{text[:MOST_MESSAGE]}…"


def without_key(text: str, key: str) -> str:
    """`text` with ``…`` for each run of `HIDDEN` or more characters that the key has in a row."""
    size = min(len(key), HIDDEN)
    parts = {key[start : start + size] for start in range(len(key) - size + 1)} - {""}
    is_hidden = [False] * len(text)
    for start in range(len(text) - size + 1):
        if text[start : start + size] in parts:
            is_hidden[start : start + size] = [True] * size
    runs = itertools.groupby(zip(is_hidden, text, strict=True), key=operator.itemgetter(0))
    return "".join("…" if hidden else "".join(c for _, c in run) for hidden, run in runs)


def _error(content: Any) -> dict[str, Any]:
    """The ``error`` of a body; older servers have its fields in the body itself."""
    if not isinstance(content, dict):
        return {}
    error = content.get("error") or content
    return error if isinstance(error, dict) else {"message": error}


def _is_error(content: Any) -> bool:
    """Whether JSON that came with status 200 says that the server failed."""
    return isinstance(content, dict) and bool(
        content.get("error") or content.get("object") == "error"
    )


def _retry_after(headers: http.client.HTTPMessage) -> int:
    """Seconds of ``Retry-After``, which has a number or a date (RFC 9110, section 10.2.3); 0 if
    neither.

    A date counts from the response's own ``Date``, whose clock it is of.
    """
    given = headers.get("Retry-After", "").strip()
    if given.isdecimal():
        return min(int(given[:9]), MOST_RETRY)
    until = _moment(given)
    if until is None:
        return 0
    since = _moment(headers.get("Date", ""))
    return min(max(0, math.ceil(until - (time.time() if since is None else since))), MOST_RETRY)


def _moment(date: str) -> float | None:
    """An HTTP date in seconds since 1970; None if it is none."""
    try:
        found = parsedate_to_datetime(date)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _ends(event: dict[str, Any]) -> bool:
    """Whether the reply ends with an event."""
    choices = event.get("choices")
    rows = choices if isinstance(choices, list) else []
    return any(isinstance(row, dict) and row.get("finish_reason") for row in rows)


def _require_whole(content: bytes | bytearray) -> None:
    """Raise RemoteError for a response, or a line of it, of which the rest was not read."""
    if len(content) > MOST_BODY:
        problem = f"the model's server sent over {MOST_BODY >> 20} MiB at a time"
        raise RemoteError(problem, code="upstream_invalid")


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _not_json() from error


def _not_json() -> RemoteError:
    return RemoteError("the model's server sent invalid JSON", code="upstream_invalid")


def _cut() -> RemoteError:
    problem = "the model's server ended the reply before it was whole"
    return RemoteError(problem, "try again", code="upstream_cut")


def _unsendable() -> RemoteError:
    problem = "a request to the model's server cannot be sent"
    return RemoteError(problem, f"its operator checks its address and {KEY}", code="upstream_key")


def _reason(error: BaseException) -> str:
    return in_one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)
