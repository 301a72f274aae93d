"""``/v1/tasks``: the owner's own tasks (``lmsmith tasks add``) as functions of texts.

A task's texts go through the scheduler like any prompt, a few at a time, so that replies under way
wait for none of them longer than for another prompt.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.core.errors import UserError
from lmsmith.evaluation.model import EvaluatedModel
from lmsmith.evaluation.tasks.data import Item, read_data
from lmsmith.evaluation.tasks.shipped import user_tasks
from lmsmith.evaluation.tasks.spec import TaskSpec
from lmsmith.functions.requests import AskedText, FunctionRequests, TooLong
from lmsmith.server.answering import Answer, Serving
from lmsmith.server.errors import ApiError, refused
from lmsmith.server.protocol import TaskBody
from lmsmith.server.responses import ClientGone, json_response, while_connected
from lmsmith.server.served import ServedModel
from lmsmith.server.token_text import usage

log = logging.getLogger("lmsmith.server")
router = APIRouter()

SHARE = 4
"""A task's texts take this part of the replies that may be written together, one text at least."""


@router.get("/v1/tasks")
async def list_tasks() -> Response:
    """All tasks of the owner's own."""
    tasks = await asyncio.to_thread(_tasks)
    data = [
        {"id": name, "object": "task", "about": task.about, "kind": task.kind}
        for name, task in tasks.items()
    ]
    return json_response({"object": "list", "data": data})


@router.post("/v1/tasks/{name:path}")
async def run_task(request: Request, name: str, body: TaskBody) -> Response:
    """Each text with its label and every label's probability, or with what was written of it."""
    serving: Serving = request.app.state.serving
    texts = _texts(body, serving.limits.prompts)
    model = serving.model(body.model)
    task, examples = await asyncio.to_thread(_task, name)
    run = _Run(serving, model, task, examples, is_list=body.input is None)
    try:
        results = await while_connected(request, run.results(texts))
    except ClientGone:
        serving.metrics.cancelled.labels(model.name).inc()
        return Response(status_code=499)
    shown = {"object": "task.results", "task": name, "model": model.name, "results": results}
    return json_response({**shown, "usage": run.usage()}, {"x-request-id": run.name})


def _texts(body: TaskBody, most: int) -> list[str]:
    if (body.input is None) == (body.inputs is None):
        raise ApiError(400, "give either input, a text, or inputs, a list of texts", param="input")
    texts = [body.input] if body.input is not None else body.inputs or []
    if len(texts) > most:
        raise ApiError(400, f"inputs: at most {most} at once, not {len(texts)}", param="inputs")
    return texts


def _tasks() -> dict[str, TaskSpec]:
    try:
        return user_tasks()
    except UserError as error:
        log.error("the tasks cannot be read: %s", error)
        raise _unreadable() from error


def _task(name: str) -> tuple[TaskSpec, Sequence[Item]]:
    tasks = _tasks()
    if name not in tasks:
        there = f"there is: {', '.join(tasks)}" if tasks else "there is none yet: lmsmith tasks add"
        problem = f"there is no task {name!r} here; {there}"
        raise ApiError(404, problem, param="task", code="task_not_found")
    try:
        return tasks[name], read_data(tasks[name], [Path()]).items
    except UserError as error:
        log.error("task %s cannot be read: %s", name, error)
        raise _unreadable() from error


def _unreadable() -> ApiError:
    """Said without the path, which is nobody's but the owner's."""
    problem = "a task's file on the server cannot be read; the server's log says which and why"
    return ApiError(500, problem, "server_error", code="task_unreadable")


class _Run:
    """A task's texts on their way through the scheduler.

    Args:
        serving: whose queue and limits hold.
        model: answers.
        task: what is asked.
        examples: shown before each text.
        is_list: texts were given as ``inputs``; errors say so.
    """

    def __init__(
        self,
        serving: Serving,
        model: ServedModel,
        task: TaskSpec,
        examples: Sequence[Item],
        *,
        is_list: bool,
    ) -> None:
        self.name = f"task-{secrets.token_hex(12)}"
        self._serving, self._model, self._is_list = serving, model, is_list
        self._rows = max(1, serving.limits.streams // SHARE)
        try:
            self._function = FunctionRequests(_subject(model), task, examples, self._rows)
        except UserError as error:
            raise refused(error, "task", "unsupported_task") from error
        self._read = self._written = self._reused = 0
        self._ahead: AskedText | None = None  # prepared, but for the next part

    async def results(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """What the task makes of each text.

        The first text goes alone: the examples that it has read are there for all others.

        Raises:
            ApiError: a text cannot be asked (400), too many wait (429), or it is over (503, 504).
        """
        begun, results = time.perf_counter(), list[dict[str, Any]]()
        while len(results) < len(texts):
            part = await self._next(texts, len(results))
            requests = [each for asked in part for each in asked.requests]
            answer = self._serving.answer(
                self._model, requests, self.name, begun=begun if results else None
            )
            try:
                await answer.whole()
            finally:
                answer.close()
            results += self._answers(part, answer)
        return results

    def usage(self) -> dict[str, Any]:
        """Tokens of all texts, as other routes say it."""
        return usage(self._read, self._written, self._reused)

    async def _next(self, texts: Sequence[str], first: int) -> list[AskedText]:
        """The texts from the first on that are asked together."""
        part: list[AskedText] = []
        rows = 0
        for number in range(first, len(texts)):
            asked, self._ahead = self._ahead, None
            if asked is None:
                asked = await asyncio.to_thread(self._asked, texts[number], number)
            rows += sum(each.settings.samples for each in asked.requests)
            if part and rows > self._rows:
                self._ahead = asked
                break
            part.append(asked)
            if number == 0:
                break
        return part

    def _asked(self, text: str, number: int) -> AskedText:
        param = f"inputs[{number}]" if self._is_list else "input"
        try:
            return self._function.asked(text, number, keep=number == 0)
        except TooLong as error:
            raise refused(error, param, "context_length_exceeded") from error
        except UserError as error:
            raise refused(error, param) from error

    def _answers(self, part: Sequence[AskedText], answer: Answer) -> list[dict[str, Any]]:
        self._read += answer.prompt_tokens
        self._written += answer.written_tokens
        self._reused += answer.reused_tokens
        replies = iter([question.replies for question in answer.questions])
        return [
            self._function.answer(asked, [next(replies) for _ in asked.requests]) for asked in part
        ]


def _subject(model: ServedModel) -> EvaluatedModel:
    """The model as tasks are written for it; the engine thread alone computes with it."""
    return EvaluatedModel(
        name=model.name,
        model=model.scheduler.model,
        tokenizer=model.tokenizer,
        fingerprint="",
        parameters=0,
        precision="",
        start=model.tokenizer.text_start,
    )
