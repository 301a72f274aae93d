"""A command line from a function's signature and docstring, by tyro; and messages for mistakes.

A positional parameter is a positional argument, and a keyword-only parameter is an option.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import tyro

from lmsmith.cli.output import print_json
from lmsmith.cli.processes import is_silent
from lmsmith.core.errors import UserError
from lmsmith.options import documented, read_docstring

MOVED = {
    "task": "tasks",
    "task add": "tasks add",
    "task run": "tasks run",
    "models export": "export",
    "eval --compare": "compare MODEL OTHER …",
    "eval --stages": "compare RUN --stages …",
    "eval --win-rate": "compare MODEL OTHER --win-rate FILE --judge JUDGE",
    **dict.fromkeys(
        ("eval --reply-tokens", "eval --greedy", "eval --labelers", "eval --database"),
        "compare MODEL OTHER --win-rate FILE …",
    ),
}
"""Commands and options of earlier versions, and what to write now."""

METAVARS = {
    "FILE": "database file prompts input include contamination win_rate distil rankings",
    "FOLDER": "data folder out include_path",
    "MODEL": "judge models",
    "N": "at limit seed alternatives reply_tokens labelers adapter_layers keep",
    "NAME": "suite measure person allow_host",
    "PATH": "root_path",
    "ADDRESS": "trusted_proxy",
    "X": "temperature full_learning_rate",
    "P": "top_p",
    "SHARE": "held_out",
    "TASK=LABEL": "classifier",
    "STAGE": "only redo",
    "[STAGE[.KEY]]": "key",
    "STAGE.KEY=VALUE": "set",
    "TEXT": "system message response",
    "TOKEN": "token",
    "GB": "memory",
    "A,B,…": "tasks shots labels examples clusters templates",
    "LxW,LxW,…": "sizes",
}
"""Placeholder of a value in the help, and the options that take such a value.

A value with commas is a list in one word; other sequences are given by repeating the option.
"""
_METAVAR = {name: metavar for metavar, names in METAVARS.items() for name in names.split()}


def printed(
    function: Callable[..., Any], show: Callable[..., object], *, quiet_json: bool = True
) -> Callable[..., int]:
    """A command that calls a function of `lmsmith.api` and prints its result.

    Args:
        function: its result is a mapping, or has ``as_dict``.
        show: prints the result for people; it gets the options that its parameters name.
        quiet_json: whether ``--json`` means ``--quiet`` too.
    """
    parameters = inspect.signature(function).parameters
    told = {
        name: parameters[name].default
        for name in inspect.signature(show).parameters
        if name in parameters
    }

    @functools.wraps(function)
    def command(*arguments: Any, json: bool = False, **options: Any) -> int:
        if json and quiet_json and "quiet" in parameters:
            options["quiet"] = True
        result = function(*arguments, **options)
        if is_silent():
            return 0
        if json:
            print_json(result if isinstance(result, Mapping) else result.as_dict())
        else:
            show(result, **{name: options.get(name, default) for name, default in told.items()})
        return 0

    flag = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool)
    command.__signature__ = inspect.Signature([*parameters.values(), flag])  # type: ignore[attr-defined]
    return documented(command)


def run_command(
    name: str,
    function: Callable[..., Any],
    summary: str,
    examples: Sequence[str],
    words: list[str],
    beside: Sequence[str] = (),
) -> int:
    """Parse the words as a function's arguments, call it, and return the exit code.

    ``beside`` has the last words of commands that begin with this one's name.
    """
    _refuse_settings_without_value(words)
    about, meanings, _ = read_docstring(documented(function))
    shown = "\n".join(f"  {example}" for example in examples)
    try:
        with _user_errors(name, function, beside):
            call = tyro.cli(
                _shaped(function, meanings),
                prog=f"lmsmith {name}",
                description=f"{about or summary}\n\nExamples:\n{shown}",
                args=words,
                config=(tyro.conf.PositionalMetavarFromFieldName, tyro.conf.FlagCreatePairsOff),
            )
        code = call()
    except SystemExit as stop:  # after --help
        code = 0 if stop.code is None else stop.code if isinstance(stop.code, int) else 2
    return code if isinstance(code, int) else 0


def _shaped(
    function: Callable[..., Any], meanings: Mapping[str, str]
) -> Callable[..., Callable[[], Any]]:
    """The function as tyro reads it: it returns the call, and each parameter has its help."""

    def parsed(*arguments: Any, **options: Any) -> Callable[[], Any]:
        return functools.partial(function, *arguments, **options)

    # Types of the parameters alone: the result's may be imported for the type checker only.
    module = vars(sys.modules[function.__module__])
    parameters = []
    for each in inspect.signature(function).parameters.values():
        hint = each.annotation
        hint = eval(hint, module) if isinstance(hint, str) else hint
        parameters.append(each.replace(annotation=_annotation(each, hint, meanings[each.name])))
    parsed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    parsed.__annotations__ = {each.name: each.annotation for each in parameters}
    return parsed


def _annotation(parameter: inspect.Parameter, hint: Any, meaning: str) -> Any:
    """A parameter's type with its marks, placeholder and help for tyro."""
    metavar = _METAVAR.get(parameter.name)
    positional = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
    marks = [tyro.conf.Positional] if positional else []
    if typing.get_origin(hint) in (tuple, Sequence):
        hint = tuple[typing.get_args(hint)[0], ...]  # type: ignore[misc]
        if metavar is not None and "," in metavar:
            marks.append(_comma_list(metavar))
        elif not positional:
            marks.append(tyro.conf.UseAppendAction)
    elif positional and not (metavar or "").startswith("["):
        metavar = None  # the parameter's name
    if metavar is not None and "," in metavar:
        metavar = None
    return Annotated[hint, *marks, tyro.conf.arg(metavar=metavar, help=meaning)]


def _comma_list(metavar: str) -> Any:
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: tuple(filter(None, map(str.strip, words[0].split(",")))),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )


def _refuse_settings_without_value(words: Sequence[str]) -> None:
    """UserError for ``--set KEY VALUE`` and ``--set KEY``; the setting is one word, KEY=VALUE."""
    for flag, key, value in zip(words, words[1:], [*words[2:], ""], strict=False):
        if flag == "--set" and "=" not in key and not key.startswith("-"):
            value = "VALUE" if not value or value.startswith("--") else value
            raise UserError(f"--set {key}: has no =", f"Write --set '{key}={value}'.")


@contextlib.contextmanager
def _user_errors(name: str, function: Callable[..., Any], beside: Sequence[str]) -> Iterator[None]:
    """Raise a `UserError` in the words of all other messages where tyro refuses a word."""
    try:
        from tyro._errors import on_parse_error
    except ImportError:  # another version, with boxes alone
        yield
        return

    def refuse(event: Any) -> None:
        kind = type(event).__name__
        fix = ""
        if kind == "MissingArgs":
            absent = [_shown(each.arg) for each in event.missing_arguments]
            problem = f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} missing"
        elif kind == "BadValue":
            problem = f"{_shown(event.argument)} has no value"
        elif kind == "InvalidChoice":
            choices = [*event.choices, *beside]
            expected = f"expected {', '.join(choices[:-1])} or {choices[-1]}"
            problem = f"{_shown(event.argument)} is {event.value!r}; {expected}"
            fix = _did_you_mean(event.value, choices)
        elif kind == "UnrecognizedArgs" and event.tokens[0].startswith("-"):
            flag = event.tokens[0].partition("=")[0]
            if (now := MOVED.get(f"{name} {flag}")) is not None:
                raise UserError(f"{name} {flag}: is another command now", f"Write lmsmith {now}.")
            problem = f"{event.tokens[0]} is not an option of this command"
            options = [each.strip("_") for each in inspect.signature(function).parameters]
            fix = _did_you_mean(flag, [f"--{each.replace('_', '-')}" for each in options])
        elif kind == "UnrecognizedArgs":
            problem = f"{event.tokens[0]!r} is one word too many"
        elif kind == "InstantiationFailure" and event.argument is not None:
            expected = event.argument.lowered.metavar
            # For a value that may be absent the last reason is the value's.
            reason = event.message.rpartition("'>: ")[2].removesuffix(")")
            problem = f"{_shown(event.argument)}: expected {expected} ({reason})"
        else:
            return
        hint = f"lmsmith {name} --help shows its arguments and options."
        raise UserError(f"{name}: {problem}", " ".join(filter(None, (fix, hint))))

    with on_parse_error(refuse):
        yield


def unknown_command(words: list[str], names: list[str]) -> UserError:
    """The error for an unknown command; it names the nearest, or the command's new name."""
    for length in (2, 1):
        old = " ".join(words[:length])
        if old in MOVED:
            return UserError(f"{old}: is another command now", f"Write lmsmith {MOVED[old]}.")
    group = [name for name in names if name.startswith(f"{words[0]} ")]
    if group and len(words) > 1:
        ends = [name.split()[1] for name in group]
        problem, fix = " ".join(words[:2]), _did_you_mean(words[1], ends, f"lmsmith {words[0]} ")
    else:
        group = list(dict.fromkeys(name.split()[0] for name in names))
        problem, fix = words[0], _did_you_mean(words[0], group, "lmsmith ")
    return UserError(f"{problem}: unknown command", fix or f"The commands: {', '.join(group)}.")


def _did_you_mean(word: str, known: Iterable[str], before: str = "") -> str:
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"Did you mean {before}{near[0]}?" if near else ""


def _shown(argument: Any) -> str:
    """An argument as the user writes it."""
    lowered = argument.lowered
    return str(lowered.metavar if argument.is_positional() else lowered.name_or_flags[-1])
