"""``/v1/tasks``: the owner's own tasks (``lmsmith tasks add``), fine-tuned classifiers and
translators, as functions of texts.

A task's texts go through the scheduler like other prompts, a few at a time, so that running replies
do not wait longer for them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.core.errors import UserError
from lmsmith.evaluation.classifier_function import Input
from lmsmith.evaluation.functions import AskedText, FunctionRequests, TooLong
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.tasks.data import Item, read_data
from lmsmith.evaluation.tasks.shipped import user_tasks
from lmsmith.evaluation.tasks.spec import TaskSpec
from lmsmith.server.auth import visitor_of
from lmsmith.server.classifiers import ServedClassifier
from lmsmith.server.engine import AsyncEngine
from lmsmith.server.errors import ApiError, bad_request, shutting_down
from lmsmith.server.models import ServedModel, served_model
from lmsmith.server.requests import MAX_MESSAGES, Body, ParsedRequest, check_characters, new_id
from lmsmith.server.stream import ClientGone, json_response, usage, while_connected
from lmsmith.server.translators import ServedTranslator

log = logging.getLogger("lmsmith.server")
router = APIRouter()
Result = TypeVar("Result")

SHARE = 4
"""A task takes at most 1/SHARE of a model's rows, or one text."""


Fields = Annotated[dict[str, Any], Field(max_length=64)]
Inputs = Annotated[list[str | Fields], Field(max_length=MAX_MESSAGES, fail_fast=True)]


class TaskBody(Body):
    """Either one input or several: a text, or a classifier's texts by their names."""

    input: str | Fields | None = None
    inputs: Inputs | None = Field(None, min_length=1)


@router.get("/v1/tasks")
async def list_tasks(request: Request) -> Response:
    """The owner's tasks, and the translators and classifiers that are served."""
    tasks = await asyncio.to_thread(_read, "the tasks", user_tasks)
    data = [
        {"id": name, "object": "task", "about": task.about, "kind": task.kind}
        for name, task in tasks.items()
    ]
    about = {"object": "task", "about": "Translates sentences.", "kind": "translation"}
    data = [{"id": name, **about} for name in request.app.state.translators] + data
    data = [each.described() for each in request.app.state.classifiers.values()] + data
    return json_response({"object": "list", "data": data})


@router.post("/v1/tasks/{name:path}")
async def run_task(request: Request, name: str, body: TaskBody) -> Response:
    """Each text with its label and every label's probability, or with the extracted text."""
    engine: AsyncEngine = request.app.state.engine
    inputs = _inputs(body, engine.limits.prompts)
    if (classifier := request.app.state.classifiers.get(name)) is not None:
        return await _classify(request, classifier, inputs, is_list=body.input is None)
    texts = _texts(inputs, is_list=body.input is None)
    if (translator := request.app.state.translators.get(name)) is not None:
        return await _translate(request, translator, texts, is_list=body.input is None)
    model = served_model(engine.models, body.model)
    task, examples = await asyncio.to_thread(_task, name)
    salt = visitor_of(request).cache_salt
    run = _TaskRun(engine, model, task, examples, salt, is_list=body.input is None)
    try:
        results = await while_connected(request.receive, run.results(texts))
    except ClientGone:
        engine.metrics.cancelled.labels(model.name).inc()
        return Response(status_code=499)
    shown = {"object": "task.results", "task": name, "model": model.name, "results": results}
    return json_response({**shown, "usage": usage(*run.counts)}, {"x-request-id": run.id})


async def _classify(
    request: Request, classifier: ServedClassifier, inputs: Sequence[Input], *, is_list: bool
) -> Response:
    engine: AsyncEngine = request.app.state.engine
    if engine.draining:
        raise shutting_down()
    work = classifier.classify(inputs, engine.limits, is_list=is_list)
    try:
        results, read = await while_connected(request.receive, work)
    except ClientGone:
        return Response(status_code=499)
    name = classifier.name
    shown = {"object": "task.results", "task": name, "model": name, "results": results}
    return json_response({**shown, "usage": usage(read, 0, 0)}, {"x-request-id": new_id("task")})


async def _translate(
    request: Request, translator: ServedTranslator, texts: Sequence[str], *, is_list: bool
) -> Response:
    engine: AsyncEngine = request.app.state.engine
    if engine.draining:
        raise shutting_down()
    work = translator.translate(texts, engine.limits, is_list=is_list)
    try:
        results, counts = await while_connected(request.receive, work)
    except ClientGone:
        return Response(status_code=499)
    name = translator.name
    shown = {"object": "task.results", "task": name, "model": name, "results": results}
    headers = {"x-request-id": new_id("task")}
    return json_response({**shown, "usage": usage(*counts, 0)}, headers)


def _inputs(body: TaskBody, most: int) -> list[Input]:
    if (body.input is None) == (body.inputs is None):
        raise ApiError(400, "give either input, a text, or inputs, a list of texts", param="input")
    inputs: list[Input] = [body.input] if body.input is not None else [*(body.inputs or [])]
    if len(inputs) > most:
        raise ApiError(400, f"inputs: at most {most} at once, not {len(inputs)}", param="inputs")
    return inputs


def _texts(inputs: Sequence[Input], *, is_list: bool) -> list[str]:
    """The inputs of a task that reads texts without names."""
    for number, given in enumerate(inputs):
        if not isinstance(given, str):
            param = f"inputs[{number}]" if is_list else "input"
            raise ApiError(400, f"{param}: this task reads a text", param=param)
    return [given for given in inputs if isinstance(given, str)]


def _task(name: str) -> tuple[TaskSpec, Sequence[Item]]:
    tasks = _read("the tasks", user_tasks)
    if name not in tasks:
        there = f"there is: {', '.join(tasks)}" if tasks else "there is none yet: lmsmith tasks add"
        problem = f"there is no task {name!r} here; {there}"
        raise ApiError(404, problem, param="task", code="task_not_found")
    return tasks[name], _read(f"task {name}", lambda: read_data(tasks[name], [Path()]).items)


def _read(what: str, work: Callable[[], Result]) -> Result:
    try:
        return work()
    except UserError as error:
        log.error("%s cannot be read: %s", what, error)
        # Without the path, which is for the owner alone.
        problem = "a task's file on the server cannot be read; the server's log says which and why"
        raise ApiError(500, problem, "server_error", code="task_unreadable") from error


class _TaskRun:
    """One task request, which submits its texts in parts.

    Attributes:
        counts: tokens of prompts, of replies, and of prompts that were in the cache.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        model: ServedModel,
        task: TaskSpec,
        examples: Sequence[Item],
        cache_salt: str,
        *,
        is_list: bool,
    ) -> None:
        self.id = new_id("task")
        self._engine, self._model, self._is_list = engine, model, is_list
        self._cache_salt = cache_salt
        self._rows = max(1, engine.limits.streams // SHARE)
        try:
            self._function = FunctionRequests(_evaluated(model), task, examples, self._rows)
        except UserError as error:
            raise bad_request(error, "task", "unsupported_task") from error
        self.counts = (0, 0, 0)
        self._ahead: AskedText | None = None  # the first of the next part

    async def results(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """The result of each text.

        The first text goes alone: it puts the examples into the cache for all others.

        Raises:
            ApiError: a text is refused (400), the queue is full (429), or the time or the server
                ends (503, 504).
        """
        started, results = time.perf_counter(), list[dict[str, Any]]()
        while len(results) < len(texts):
            part = await self._next(texts, len(results))
            requests = [each for asked in part for each in asked.requests]
            parsed = ParsedRequest(
                id=self.id, model=self._model, prompts=requests, cache_salt=self._cache_salt
            )
            generation = self._engine.submit(parsed, started=started if results else None)
            try:
                await generation.finish()
            finally:
                generation.close()
            prompt, new, cached = map(sum, zip(self.counts, generation.token_counts, strict=True))
            self.counts = prompt, new, cached
            replies = iter([each.replies for each in generation.prompts])
            results += [
                self._function.answer(asked, [next(replies) for _ in asked.requests])
                for asked in part
            ]
        return results

    async def _next(self, texts: Sequence[str], first: int) -> list[AskedText]:
        """Texts from ``first`` on that are submitted together."""
        part: list[AskedText] = []
        rows = 0
        for number in range(first, len(texts)):
            asked, self._ahead = self._ahead, None
            if asked is None:
                param = f"inputs[{number}]" if self._is_list else "input"
                count = check_characters(self._model, [texts[number]], param)
                work = partial(self._asked, texts[number], number, param)
                asked = await self._engine.texts.run(self._cache_salt, count, work)
            rows += sum(each.settings.samples for each in asked.requests)
            if part and rows > self._rows:
                self._ahead = asked
                break
            part.append(asked)
            if number == 0:
                break
        return part

    def _asked(self, text: str, number: int, param: str) -> AskedText:
        try:
            return self._function.asked(text, number, keep=number == 0)
        except TooLong as error:
            raise bad_request(error, param, "context_length_exceeded") from error
        except UserError as error:
            raise bad_request(error, param) from error


def _evaluated(model: ServedModel) -> EvaluatedModel:
    """The model for tasks; the engine thread alone computes with it."""
    return EvaluatedModel(
        name=model.name,
        model=model.local("tasks").model,
        tokenizer=model.tokenizer,
        fingerprint="",
        parameters=0,
        precision="",
        start=model.tokenizer.text_start,
    )
