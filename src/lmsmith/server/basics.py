"""What models there are, and how the server is."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.server.answering import Serving
from lmsmith.server.keeping import for_roles
from lmsmith.server.responses import json_response, to_json
from lmsmith.server.served import ServedModel

router = APIRouter()


@router.get("/v1/models")
async def list_models(request: Request) -> Response:
    """All models."""
    serving: Serving = request.app.state.serving
    data = [_shown(model) for model in serving.models.values()]
    return json_response({"object": "list", "data": data})


@router.get("/v1/models/{name:path}")
async def show_model(request: Request, name: str) -> Response:
    """One model."""
    serving: Serving = request.app.state.serving
    return json_response(_shown(serving.model(name)))


def _shown(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "lmsmith",
        "max_model_len": model.context,
        "advised": {"temperature": model.advised.temperature, "top_p": model.advised.top_p},
    }


@router.get("/health")
async def health(request: Request) -> Response:
    """200 while the engine's thread lives."""
    return _status("ok" if request.app.state.serving.worker.is_alive else "the engine has ended")


@router.get("/ready")
async def ready(request: Request) -> Response:
    """200 while a request would be taken."""
    serving: Serving = request.app.state.serving
    if serving.draining:
        return _status("draining")
    if not serving.worker.is_alive:
        return _status("the engine has ended")
    full = [name for name in serving.models if serving.is_full(name)]
    return _status(f"the queue of {full[0]} is full" if full else "ok")


def _status(word: str) -> Response:
    status = 200 if word == "ok" else 503
    return Response(to_json({"status": word}), status, media_type="application/json")


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """For Prometheus; how much everybody asks is the admins' business alone."""
    for_roles(request, ("admin",))
    serving: Serving = request.app.state.serving
    for name, model in serving.models.items():
        serving.metrics.waiting.labels(name).set(serving.waiting[name])
        serving.metrics.active.labels(name).set(model.scheduler.active)
        serving.metrics.cache_used.labels(name).set(model.scheduler.rows.used_bytes)
    return Response(serving.metrics.text(), media_type=CONTENT_TYPE_LATEST)
