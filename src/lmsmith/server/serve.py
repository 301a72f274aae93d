"""``lmsmith serve`` and `lmsmith.serve`: from models and options to a server that listens."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmsmith.core.errors import UserError, needs_extra
from lmsmith.core.format import format_size
from lmsmith.core.recipe import MachineConfig
from lmsmith.core.terminal import in_one_line
from lmsmith.options import Weights

if TYPE_CHECKING:
    from lmsmith.feedback.people import People
    from lmsmith.server.models import ServedModel


def serve(
    models: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str = "",
    allow_host: Sequence[str] = (),
    root_path: str = "",
    trusted_proxy: Sequence[str] = (),
    weights: Weights = "file",
    draft: str = "",
    adapters_on: str = "",
    database: str = "",
    recipe: str = "",
    memory: float = 0.0,
    threads: int = 0,
    streams: int = 64,
    queue: int = 128,
    max_tokens: int = 0,
    timeout: float = 600.0,
    drain: float = 30.0,
    open: bool = False,
) -> None:
    """A chat page, and OpenAI's API (/v1/chat/completions and others), with models of this machine.

    On SIGTERM or Ctrl-C the server accepts no more requests, finishes running ones, and ends.

    Args:
        models: Runs, model folders, Hugging Face folders, GGUF files or registered names; write
            NAME=MODEL to choose what clients call it. A name with versions means the promoted one,
            also when another one is promoted later. A translator answers the task NAME; an encoder
            answers /v1/embeddings. Folders of adapters on one base share its weights.
            NAME=openai:http://HOST:PORT/v1#MODEL is a model behind another server (vLLM,
            llama.cpp); OPENAI_API_KEY is its key.
        host: Address to listen on; any but this machine's own demands a token, or named users.
        port: Port to listen on; 0 takes a free one.
        token: Required in every request, as an API key; LMSMITH_TOKEN if it is left out. At an
            address that others reach it must look random: words, dates and patterns are refused.
        allow_host: A name by which clients may call this server, beside its address. Repeatable.
        root_path: Path of the page at a proxy, such as /chat; the API is at /chat/v1.
        trusted_proxy: Address or network of a proxy whose X-Forwarded-For and X-Forwarded-Proto
            say where a request comes from, and whether by TLS. Repeatable.
        weights: As the file has them (a quantised GGUF file at its own bits), expanded to the
            precision (model), or rounded to int8: half the memory of bf16, nearly twice
            the speed.
        adapters_on: The model, by its name here, that all folders of adapters stand on, such as a
            quantised file of the base that they were trained on; the base that each names if left
            out.
        database: Keeps conversations and judgements, for /api and `lmsmith feedback export`: a
            file, or a URL such as postgresql://host/name. A file beside the models if left out.
        recipe: A .toml file of settings, as for lmsmith improve --recipe, for the improvements
            that admins start on the page.
        memory: For weights and caches together, in GB; 0 gives each model a cache of 1 GB.
        threads: Of the engine; 0 is all cores.
        streams: Replies written together, of each model.
        queue: Requests that may wait; more are told to try again later (429).
        max_tokens: Longest reply; 0 is the context.
        timeout: Seconds that a request may take.
        drain: Seconds that running replies have to finish after the signal to end.
        open: Open the chat page in a browser.

    Raises:
        UserError: a model is missing, an option is out of range, or the address is taken.

    >>> lmsmith.serve(["runs/quickstart"], port=8080)                       # doctest: +SKIP
    """
    with needs_extra("serve"):
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import sqlalchemy  # noqa: F401
        import uvicorn  # noqa: F401
        import zxcvbn  # noqa: F401
    from lmsmith.catalogue.remote import split_remote
    from lmsmith.feedback.database import default_database, make_safe
    from lmsmith.feedback.people import People
    from lmsmith.feedback.store import Store
    from lmsmith.generation.machine import prepare_reading
    from lmsmith.generation.native.library import advice_on_kernels
    from lmsmith.server import pages
    from lmsmith.server.app import Server, addresses, bound_socket, create_app, is_any
    from lmsmith.server.classifiers import divide_classifiers, read_classifiers
    from lmsmith.server.connections import ConnectionLimits
    from lmsmith.server.encoders import Encoders, read_encoders, split_words
    from lmsmith.server.engine import AsyncEngine
    from lmsmith.server.guard import LOOPBACK
    from lmsmith.server.models import (
        GIGABYTE,
        Loader,
        read_models,
        serve_remote,
    )
    from lmsmith.server.proxy import checked_proxies, checked_root_path
    from lmsmith.server.requests import Limits
    from lmsmith.server.token_strength import ADVICE, weakness
    from lmsmith.server.translators import divide, read_translators
    from lmsmith.server.wrong_tokens import is_loopback
    from lmsmith.training.machine import compute_aside, resolve_machine

    token = token or os.environ.get("LMSMITH_TOKEN", "")
    if not models:
        raise UserError("no model to serve", "name one: lmsmith serve runs/quickstart")
    limits = Limits(streams, queue, timeout, tokens=max_tokens, drain_seconds=drain)
    options = {"seconds": "timeout", "tokens": "max-tokens", "drain_seconds": "drain"}
    problems = [
        f"--{options.get(name, name)} {value}: {least:g} or more"
        for name, value, least in limits.out_of_range()
    ]
    if threads < 0:
        problems.append(f"--threads {threads}: 0 or more")
    if recipe and not Path(recipe).is_file():
        problems.append(f"--recipe {recipe}: no such file")
    if problems:
        raise UserError("\n".join(problems))
    root_path, proxies = checked_root_path(root_path), checked_proxies(trusted_proxy)
    log_lines = logging.StreamHandler()
    log_lines.setFormatter(_OneLine("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[log_lines])
    with contextlib.ExitStack() as closing:
        named, database = database, database or default_database()
        store = closing.enter_context(contextlib.closing(Store(database)))
        people = People(store)
        if token and not is_loopback(host) and (why := weakness(token)):
            raise UserError(
                f"--host {host}: others can reach this address, and the token is weak: {why}",
                f"{ADVICE}; set LMSMITH_TOKEN to it",
            )
        if not is_loopback(host) and not token and not people.anybody():
            raise UserError(
                f"--host {host}: others can reach this address, so a token is needed",
                "set LMSMITH_TOKEN or give --token, which clients then send as their API key; or "
                f"let people in by name: lmsmith users add NAME{store.option}",
            )
        listening = closing.enter_context(contextlib.closing(bound_socket(host, port)))
        machine, budget = prepare_reading(MachineConfig(threads=threads)), int(memory * GIGABYTE)
        loader = Loader(machine, weights, budget, streams, draft)
        local, remote = split_remote(models)
        writing, encoding = split_words(local)
        writing, classifying = divide_classifiers(writing)
        writing, translating = divide(writing)
        served = compute_aside(
            lambda: loader.first(read_models(writing, weights, adapters_on, machine.place))
        )
        if twice := [each.name for each in served if each.name in remote]:
            raise UserError(f"two models are called {twice[0]}", "name one: other=MODEL")
        served += [serve_remote(name, each, streams) for name, each in remote.items()]
        plain, taken = resolve_machine(MachineConfig(threads=threads)), [m.name for m in served]
        translators = read_translators(translating, plain, taken)
        for model in served:
            print(describe(model))
        for each in translators.values():
            print(f"{in_one_line(each.name)}: translates, as the task /v1/tasks/{each.name}")
        taken = [*(model.name for model in served), *translators]
        classifiers = read_classifiers(classifying, machine, taken)
        for known in classifiers.values():
            print(f"{in_one_line(known.name)}: classifies, as the task /v1/tasks/{known.name}")
        encoders = Encoders(read_encoders(encoding, machine, [*taken, *classifiers]), queue)
        for encoder in encoders.models.values():
            print(encoder.description())
        engine = AsyncEngine(served, limits)
        address, *others = (f"{each}{root_path}" for each in addresses(listening, host))
        kept_in = make_safe(database) if "://" in database else database

        def ready() -> None:
            if advice := advice_on_kernels():
                print(advice)
            print(f"conversations are kept in {kept_in}")
            if pages.assets():
                print(f"the chat page is at {address}, OpenAI's API at {address}/v1")
            else:
                print(f"the chat page is not built; {address} says how. The API is at {address}/v1")
            if others and not allow_host:
                print(f"other machines reach it at {others[0]}")
            if hint := _sign_in_hint(people, token):
                print(hint)
            print(f"{address}/v1 is ready; Ctrl-C ends", flush=True)
            if open:
                webbrowser.open(address)

        hosts = () if is_any(listening) and not allow_host else (*LOOPBACK, host, *allow_host)
        app = create_app(
            engine,
            store,
            token=token,
            hosts=hosts,
            loader=loader,
            database=named,
            recipe=recipe,
            translators=translators,
            classifiers=classifiers,
            encoders=encoders,
            root_path=root_path,
            proxies=proxies,
        )
        gc.collect()
        gc.freeze()  # models and modules, which no later collection has to look at
        limited = ConnectionLimits.of_system(proxies)
        Server(app, engine, listening, ready, limited).serve_until_stopped()


class _OneLine(logging.Formatter):
    """A message is one line of the log, whatever a request has in it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = in_one_line(record.message)
        return super().formatMessage(record)


def describe(model: ServedModel) -> str:
    """Its context and sizes, in one line."""
    from lmsmith.generation.remote import RemoteScheduler

    if isinstance(model.scheduler, RemoteScheduler):
        behind, context = model.scheduler.model, model.shown_context
        known = "" if context is None else f", context {context:,}"
        return f"{in_one_line(model.name)}: {behind.model} at {behind.url}{known}"
    version = f" is {model.recorded}" if model.follows else ""
    if model.shares:
        name, size = in_one_line(model.name), format_size(model.weight_bytes)
        return f"{name}: context {model.context:,}, adapters of {size} on {model.shares}'s weights"
    sizes = format_size(model.weight_bytes), format_size(model.cache_bytes)
    packings = model.scheduler.model.packings
    own = f" ({', '.join(packings)} as in the file)" if packings else ""
    return (
        f"{in_one_line(model.name)}{version}: context {model.context:,}, weights {sizes[0]}{own}, "
        f"cache {sizes[1]} ({model.scheduler.cache.tokens:,} tokens)"
    )


def _sign_in_hint(people: People, token: str) -> str:
    """How to sign in, if anybody must."""
    option = people.store.option
    if not people.anybody():
        return "sign in with the server's token" if token else ""
    if not token and not people.has_admin():
        return f"no admin can sign in; make one: lmsmith users add owner --role admin{option}"
    own = "the server's or " if token else ""
    return f"sign in with {own}a user's token; a new one: lmsmith users token NAME{option}"
