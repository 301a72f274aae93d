"""Errors in the shape that OpenAI's clients read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from lmsmith.core.errors import UserError


class ApiError(Exception):
    """What a request is refused with.

    Args:
        status: of HTTP.
        message: what is wrong, and what to do.
        kind: ``invalid_request_error``, ``server_error`` and so on.
        param: the field that is wrong.
        code: for programs, such as ``context_length_exceeded``.
        headers: beside the usual ones.
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
        return {
            "error": {
                "message": self.message,
                "type": self.kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> Response:
        content = json.dumps(self.body(), ensure_ascii=False)
        return Response(content, self.status, self.headers, "application/json")


def refused(error: UserError, param: str | None = None, code: str | None = None) -> ApiError:
    """A user's mistake as a 400."""
    message = error.problem if not error.fix else f"{error.problem}; {error.fix}"
    return ApiError(400, message, param=param, code=code)


def unsupported(param: str, message: str) -> ApiError:
    """What this server does not do."""
    return ApiError(400, message, param=param, code="unsupported_parameter")


def internal(request_id: str) -> ApiError:
    """A mistake of ours; the log says more under the same id."""
    message = f"the server failed on this request; its log says more under {request_id}"
    return ApiError(500, message, "server_error", code="internal_error")


def shutting_down() -> ApiError:
    return ApiError(
        503,
        "the server is shutting down",
        "server_error",
        code="shutting_down",
        headers={"Retry-After": "5"},
    )
