"""Errors in the shape that OpenAI's clients read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.catalogue.remote import RemoteError
from lmsmith.core.errors import UserError


class ApiError(Exception):
    """A refused or failed request.

    Args:
        status: HTTP status.
        message: the problem, and its fix.
        kind: ``invalid_request_error``, ``server_error`` and so on.
        param: the wrong field.
        code: for programs, such as ``context_length_exceeded``.
        headers: additional ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.headers = param, code, dict(headers or {})

    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        content = json.dumps(self.body(), ensure_ascii=False)
        return Response(content, self.status, self.headers, "application/json")


def bad_request(error: UserError, param: str | None = None, code: str | None = None) -> ApiError:
    """A user's mistake as a 400."""
    message = error.problem if not error.fix else f"{error.problem}; {error.fix}"
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, message: str) -> ApiError:
    return ApiError(400, message, param=param, code="unsupported_parameter")


def internal(request_id: str) -> ApiError:
    """A programming error; the log has its traceback under the same id."""
    message = f"the server failed on this request; its log says more under {request_id}"
    return ApiError(500, message, "server_error", code="internal_error")


def unavailable(problem: str, code: str, *, seconds: int) -> ApiError:
    """A 503, after which clients retry in so many seconds."""
    return ApiError(503, problem, "server_error", code=code, headers={"Retry-After": str(seconds)})


def remote_failure(error: RemoteError) -> ApiError:
    """A failure of the server behind a model."""
    message = error.problem if not error.fix else f"{error.problem}; {error.fix}"
    kinds = {400: "invalid_request_error", 429: "rate_limit_error"}
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    kind = kinds.get(error.status, "server_error")
    return ApiError(error.status, message, kind, code=error.code, headers=headers)


def shutting_down() -> ApiError:
    return unavailable("the server is shutting down", "shutting_down", seconds=5)


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)


async def _api_error(_: Request, error: Any) -> Any:
    return error.response()


async def _validation_error(_: Request, error: Any) -> Response:
    """A wrong field: 400, as OpenAI's API has it, not 422."""
    found: list[dict[str, Any]] = error.errors()
    first = found[0]
    kind, place = first.get("type"), list(first.get("loc", ()))
    if kind == "json_invalid":
        reason = first.get("ctx", {}).get("error", "")
        reason = reason.removesuffix(" at")  # Python's own words: "Invalid control character at"
        return _invalid_body(f"the body is not JSON: {reason} at character {place[-1]}")
    if place == ["body"] and kind in _NO_OBJECT:
        return _invalid_body(_NO_OBJECT[kind])
    found = found if any(map(_is_branch, place)) else [first]  # all types of a union, or one
    found = [each for each in found if each["loc"][:2] == first["loc"][:2]]
    place = [part for part in place if part not in ("body", "query") and not _is_branch(part)]
    param = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    param = param.removeprefix(".")
    text = " or ".join(dict.fromkeys(each["msg"].removeprefix("Value error, ") for each in found))
    problem = f"{param}: {text}" if param else text
    return ApiError(400, problem, param=param or None, code="invalid_value").response()


_NO_OBJECT = {
    "missing": "the body is empty; send a JSON object",
    "model_attributes_type": "the body must be a JSON object, {…}",
}


def _is_branch(part: object) -> bool:
    """Whether a part of a location is pydantic's name for a type of a union, and no field."""
    return isinstance(part, str) and (part == "str" or part.startswith(("list[", "function-")))


async def _http_error(request: Request, error: Any) -> Response:
    cause = error.__cause__
    if isinstance(cause, ApiError):  # raised while the body was read
        return cause.response()
    if isinstance(cause, UnicodeDecodeError):
        return _invalid_body("the body is not UTF-8; save or send it as UTF-8")
    if isinstance(cause, RecursionError):
        cause = ValueError("lists and objects are nested too deeply in it")
    if isinstance(cause, ValueError):
        return _invalid_body(f"the body cannot be read: {cause}")
    problem = f"{request.method} {request.url.path}: {error.detail}"
    return ApiError(error.status_code, problem, headers=error.headers or {}).response()


def _invalid_body(problem: str) -> Response:
    return ApiError(400, problem, code="invalid_body").response()
