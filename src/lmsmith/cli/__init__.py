"""The ``lmsmith`` command: one table of commands, each imported only when it is run."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lmsmith.cli.streams import READER_GONE, say, show_what_can_be_shown, written_out
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.text import encodable
from lmsmith.core.version import VERSION


@dataclass(frozen=True)
class Command:
    """A command: where its function is, and what the help says of it.

    The function's signature and docstring are the command line (see tyro).
    """

    name: str
    module: str
    function: str
    summary: str
    examples: tuple[str, ...]

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        found: Callable[..., Any] = getattr(importlib.import_module(self.module), self.function)
        return found


COMMANDS: tuple[Command, ...] = (
    Command(
        "run",
        "lmsmith.cli.run",
        "run",
        "run a recipe: text → tokenizer → GPT → SFT → reward model → PPO",
        (
            "lmsmith run quickstart",
            "lmsmith run my.toml --set ppo.kl_coefficient=0.05 --dry-run",
            "lmsmith run quickstart --only evaluate",
        ),
    ),
    Command(
        "chat",
        "lmsmith.chat",
        "main",
        "talk with a model",
        ("lmsmith chat runs/quickstart", "lmsmith chat smollm2-135m"),
    ),
    Command(
        "generate",
        "lmsmith.cli.generate",
        "generate",
        "continue a text",
        (
            'lmsmith generate smollm2-135m "The capital of France is"',
            'lmsmith generate runs/quickstart "I went" --temperature 0 --json',
        ),
    ),
    Command(
        "eval",
        "lmsmith.cli.eval",
        "evaluate",
        "measure a model on tasks, as the papers did",
        (
            "lmsmith eval smollm2-135m --tasks lambada,copa --limit 100 --data DATA",
            "lmsmith eval runs/quickstart --tasks my_task.jsonl --shots 0,4 --json",
            "lmsmith eval runs/quickstart --stages --suite gpt3 --limit 100 --data DATA",
            "lmsmith eval A --compare B --win-rate asked.jsonl --judge people",
            "lmsmith eval smollm2-135m --harness lm-eval --tasks arc_easy --limit 100",
        ),
    ),
    Command(
        "study",
        "lmsmith.cli.study",
        "study",
        "find out what models take from the examples they are shown",
        (
            "lmsmith study labels smollm2-135m --tasks boolq --shots 4 --limit 100 --data DATA",
            "lmsmith study order smollm2-135m --tasks sst2/very --orders 24 --data DATA",
            "lmsmith study shots runs/small runs/large --tasks scrambles/insertion",
        ),
    ),
    Command(
        "study scale",
        "lmsmith.cli.study_scale",
        "study_scale",
        "train tiny models, and see what grows with shots, size and a chain of thought",
        (
            "lmsmith study scale",
            "lmsmith study scale --minutes 60 --sizes 2x32,2x64,3x96,4x128,4x192 --out evals/long",
            "lmsmith study scale --steps 2000 --json",
        ),
    ),
    Command(
        "serve",
        "lmsmith.cli.serve",
        "serve",
        "answer OpenAI's API with models of this machine",
        (
            "lmsmith serve runs/quickstart",
            "lmsmith serve smollm2-135m mine=runs/quickstart --port 8080 --weights int8",
            "lmsmith serve smollm2-135m --host 0.0.0.0 --token SECRET",
        ),
    ),
    Command(
        "pull",
        "lmsmith.cli.catalogue",
        "pull",
        "fetch a model, and register its name",
        ("lmsmith pull smollm2-135m", "lmsmith pull hf:HuggingFaceTB/SmolLM2-360M-Instruct"),
    ),
    Command(
        "export",
        "lmsmith.cli.catalogue",
        "export",
        "write a model for transformers, vLLM or llama.cpp",
        (
            "lmsmith export runs/quickstart --to hf",
            "lmsmith export runs/quickstart out --to gguf --type q8_0",
        ),
    ),
    Command(
        "report",
        "lmsmith.cli.report",
        "report",
        "rebuild a run's report, or print its metrics",
        ("lmsmith report runs/quickstart", "lmsmith report runs/quickstart --json"),
    ),
    Command(
        "recipes ls",
        "lmsmith.cli.recipes",
        "list_recipes",
        "list the recipes that come with lmsmith",
        ("lmsmith recipes ls",),
    ),
    Command(
        "recipes cp",
        "lmsmith.cli.recipes",
        "copy_recipe",
        "copy a recipe to a file of your own, to change it",
        ("lmsmith recipes cp own my.toml", "lmsmith recipes cp quickstart my.toml"),
    ),
    Command(
        "recipes validate",
        "lmsmith.cli.recipes",
        "validate_recipe",
        "check a recipe, and list every problem in it",
        ("lmsmith recipes validate my.toml",),
    ),
    Command(
        "task add",
        "lmsmith.cli.task",
        "add",
        "make a task of a description and a few examples",
        (
            'lmsmith task add tone "Is the review good or bad?" reviews.jsonl --labels good,bad',
            'lmsmith task add city "Name the city." cities.jsonl',
        ),
    ),
    Command(
        "task run",
        "lmsmith.cli.task",
        "run",
        "put a task of your own to texts, with each label's probability",
        (
            "lmsmith task run tone smollm2-135m < input.jsonl",
            "lmsmith task run tone runs/quickstart --input reviews.txt",
        ),
    ),
    Command(
        "tasks ls",
        "lmsmith.cli.tasks",
        "list_tasks",
        "list the tasks and suites that a model can be measured on",
        ("lmsmith tasks ls",),
    ),
    Command(
        "tasks show",
        "lmsmith.cli.tasks",
        "show",
        "show a task, and the exact prompt of an item",
        (
            "lmsmith tasks show lambada --data DATA --shots 2",
            "lmsmith tasks show arithmetic/2d_plus --shots 4",
        ),
    ),
    Command(
        "models ls",
        "lmsmith.cli.catalogue",
        "list_models",
        "list the models that have a name here",
        ("lmsmith models ls",),
    ),
    Command(
        "models show",
        "lmsmith.cli.catalogue",
        "show",
        "show where a model is from, and its shape",
        ("lmsmith models show smollm2-135m", "lmsmith models show runs/quickstart --json"),
    ),
    Command(
        "models rm",
        "lmsmith.cli.catalogue",
        "remove",
        "delete a registered model",
        ("lmsmith models rm smollm2-135m",),
    ),
    Command(
        "models export",
        "lmsmith.cli.catalogue",
        "export",
        "the same as lmsmith export",
        ("lmsmith models export smollm2-135m smollm2-hf --to hf --type bf16",),
    ),
    Command(
        "models presets",
        "lmsmith.cli.models",
        "list_presets",
        "list model shapes from GPT-1 to Llama, with their size and cost",
        ("lmsmith models presets", "lmsmith models presets --json"),
    ),
    Command(
        "feedback export",
        "lmsmith.cli.feedback",
        "export",
        "write what people judged as files that a recipe reads",
        (
            "lmsmith feedback export data/feedback",
            "lmsmith feedback export data/feedback --database chat.db --held-out 0.1 --json",
        ),
    ),
    Command(
        "feedback import",
        "lmsmith.cli.feedback",
        "import_",
        "read prompts and answers to be labelled, rankings or conversations",
        (
            "lmsmith feedback import tasks.jsonl --overlap 3",
            "lmsmith feedback import talks.jsonl --database chat.db --person Ann",
        ),
    ),
    Command(
        "feedback sample",
        "lmsmith.cli.feedback",
        "sample",
        "let models answer prompts, and have the answers judged",
        (
            "lmsmith feedback sample runs/quickstart --prompts prompts.jsonl --answers 4",
            "lmsmith feedback sample runs/a runs/b --logged --count 50 --overlap 2",
            "lmsmith feedback sample --kind demonstration --logged",
        ),
    ),
    Command(
        "feedback stats",
        "lmsmith.cli.feedback",
        "stats",
        "show progress, agreement, and which model is best",
        ("lmsmith feedback stats", "lmsmith feedback stats --database chat.db --json"),
    ),
    Command(
        "users add",
        "lmsmith.cli.users",
        "add",
        "let somebody log in to the server",
        ("lmsmith users add Ann", "lmsmith users add Bob --role labeler --database chat.db"),
    ),
    Command(
        "users ls",
        "lmsmith.cli.users",
        "list_users",
        "list who may log in",
        ("lmsmith users ls", "lmsmith users ls --database chat.db --json"),
    ),
    Command(
        "users token",
        "lmsmith.cli.users",
        "token",
        "give somebody a new token",
        ("lmsmith users token Ann",),
    ),
    Command(
        "users role",
        "lmsmith.cli.users",
        "role",
        "give somebody another role",
        ("lmsmith users role Ann labeler",),
    ),
    Command(
        "users rm",
        "lmsmith.cli.users",
        "remove",
        "delete somebody and all that is theirs",
        ("lmsmith users rm Ann",),
    ),
    Command(
        "doctor",
        "lmsmith.cli.doctor",
        "doctor",
        "show what this machine can do, and what lmsmith will choose on it",
        ("lmsmith doctor", "lmsmith doctor --json"),
    ),
)


def main(arguments: Sequence[str] | None = None, commands: Sequence[Command] = COMMANDS) -> int:
    """Run a command line and return its exit code.

    A user's mistake ends with one message on standard error and 2; an interruption, once
    everything is saved, with 128 + the signal's number. ``--debug`` anywhere shows tracebacks.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    # Bytes that are no text of the locale come as lone surrogates; a file may be named so.
    words = [word if os.path.lexists(word) else encodable(word) for word in words]
    words = [word for word in words if word != "--debug"]
    show_what_can_be_shown()
    log, shown = logging.getLogger("lmsmith.models"), _Shown()
    log.addHandler(shown)
    log.setLevel(logging.INFO)
    log.propagate = False  # or `serve`, which sets up logging, would say each line twice
    try:
        with written_out():
            return _dispatch(words, commands)
    except UserError as error:
        if debug:
            raise
        say(f"lmsmith: {error}")
        return UserError.exit_code
    except Interrupted as error:
        say("saved; run the same command to continue")
        return error.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        say("interrupted; run the same command to continue from what was saved")
        return 130
    except BrokenPipeError:
        return READER_GONE
    finally:
        log.removeHandler(shown)
        log.propagate = True


class _Shown(logging.Handler):
    """Shows each line of a log once, on standard error."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if (text := record.getMessage()) not in self.said:
            self.said.add(text)
            say(text)


def _dispatch(words: list[str], commands: Sequence[Command]) -> int:
    if words and words[0] == "--version":
        print(f"lmsmith {VERSION}")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text(commands))
        return 0
    by_name = {command.name: command for command in commands}
    for length in (2, 1):
        command = by_name.get(" ".join(words[:length]))
        if command is not None:
            return _run(command, words[length:], by_name)
    group = [command for command in commands if command.name.startswith(f"{words[0]} ")]
    if group and (len(words) == 1 or words[1] in ("-h", "--help")):
        print(help_text(group))
        return 0
    raise _unknown_command(words, list(by_name))


def _run(command: Command, words: list[str], names: Iterable[str]) -> int:
    import tyro

    from lmsmith.cli.usage import explained

    _refuse_settings_without_value(words)
    function = command.load()
    about = (inspect.getdoc(function) or command.summary).split("\nArgs:")[0].strip()
    examples = "\n".join(f"  {example}" for example in command.examples)

    @functools.wraps(function)
    def parsed(*arguments: Any, **options: Any) -> Callable[[], Any]:
        return functools.partial(function, *arguments, **options)

    beside = [name for name in names if name.startswith(f"{command.name} ")]
    try:
        with explained(command.name, function, beside):
            call = tyro.cli(
                parsed,
                prog=f"lmsmith {command.name}",
                description=f"{about}\n\nExamples:\n{examples}",
                args=words,
                config=(
                    tyro.conf.PositionalRequiredArgs,
                    tyro.conf.PositionalMetavarFromFieldName,
                    tyro.conf.FlagCreatePairsOff,
                ),
            )
        code = call()
    except SystemExit as stop:  # after --help
        code = 0 if stop.code is None else stop.code if isinstance(stop.code, int) else 2
    return code if isinstance(code, int) else 0


def _refuse_settings_without_value(words: Sequence[str]) -> None:
    """``--set KEY VALUE`` and ``--set KEY``: what is meant is one word, KEY=VALUE."""
    for flag, key, value in zip(words, words[1:], [*words[2:], ""], strict=False):
        if flag == "--set" and "=" not in key and not key.startswith("-"):
            value = "VALUE" if not value or value.startswith("--") else value
            raise UserError(f"--set {key}: has no =", f"Write --set '{key}={value}'.")


def _unknown_command(words: list[str], names: list[str]) -> UserError:
    from lmsmith.cli.usage import did_you_mean

    group = [name for name in names if name.startswith(f"{words[0]} ")]
    if group and len(words) > 1:
        ends = [name.split()[1] for name in group]
        problem, fix = " ".join(words[:2]), did_you_mean(words[1], ends, f"lmsmith {words[0]} ")
    else:
        group = list(dict.fromkeys(name.split()[0] for name in names))
        problem, fix = words[0], did_you_mean(words[0], group, "lmsmith ")
    fix = fix or f"The commands: {', '.join(group)}."
    return UserError(f"{problem}: unknown command", fix)


def help_text(commands: Sequence[Command] = COMMANDS) -> str:
    """What ``lmsmith --help`` prints."""
    width = max(len(command.name) for command in commands)
    lines = [f"  {command.name:<{width}}  {command.summary}" for command in commands]
    return "\n".join(
        [
            "usage: lmsmith COMMAND …",
            "",
            "Make a ChatGPT of your own, and know what is in it.",
            "",
            *lines,
            "",
            "lmsmith COMMAND --help explains a command, with examples.",
            "lmsmith --version prints the version; --debug, anywhere, shows tracebacks.",
            "",
            "To begin: lmsmith run quickstart",
        ]
    )
