"""A command line from a function's signature and docstring, and mistakes in one: tyro's work."""

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
from lmsmith.core.errors import UserError

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

POSITIONAL = {"models", "others"}
METAVARS = {
    "FILE": "database prompts input include contamination win_rate",
    "FOLDER": "data folder out include_path",
    "MODEL": "judge",
    "N": "limit seed alternatives reply_tokens labelers",
    "NAME": "suite measure person allow_host",
    "X": "temperature",
    "P": "top_p",
    "SHARE": "held_out",
    "TASK=LABEL": "classifier",
    "STAGE": "only",
    "STAGE.KEY=VALUE": "set",
    "TEXT": "system message response",
    "TOKEN": "token",
    "GB": "memory",
    "A,B,…": "tasks shots labels",
    "LxW,LxW,…": "sizes",
}
"""What stands for the value of an option in its help, and the options that take such a value.

A value with commas is a list in one word; other sequences are given by repeating the option.
"""
_METAVAR = {name: metavar for metavar, names in METAVARS.items() for name in names.split()}


def printed(
    function: Callable[..., Any],
    show: Callable[..., object],
    *,
    like: Callable[..., Any] | None = None,
    quiet_json: bool = True,
) -> Callable[..., int]:
    """A command that calls a function of `lmsmith.api` and prints its result.

    Args:
        function: its parameters are the command's, with ``json`` beside; its result is a mapping,
            or has ``as_dict``.
        show: prints the result for people; it gets the options that its parameters name.
        like: whose docstring explains the parameters that the function's own does not.
        quiet_json: whether ``--json`` means ``--quiet`` too.
    """

    def command(*arguments: Any, json: bool = False, **options: Any) -> int:
        if json and quiet_json and "quiet" in signature.parameters:
            options["quiet"] = True
        result = function(*arguments, **options)
        if json:
            print_json(result if isinstance(result, Mapping) else result.as_dict())
        else:
            show(result, **{name: options.get(name, default) for name, default in told.items()})
        return 0

    signature = inspect.signature(function)
    told = {
        name: signature.parameters[name].default
        for name in inspect.signature(show).parameters
        if name in signature.parameters
    }
    flag = inspect.Parameter("json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=bool)
    parameters = [
        each.replace(annotation=_positional(each, annotation))
        for each, annotation in _typed_parameters(function)
    ]
    command.__signature__ = inspect.Signature([*parameters, flag])  # type: ignore[attr-defined]
    about, own = _documented(function)
    explained = (_documented(like)[1] if like else {}) | own
    explained["json"] = "Print one JSON object on standard output, and nothing else there."
    lines = [f"    {each}: {explained.get(each, '')}" for each in (*signature.parameters, "json")]
    command.__doc__ = "\n".join([about, "", "Args:", *lines])
    return command


def _positional(parameter: inspect.Parameter, annotation: Any) -> Any:
    """The type of an argument that may be left out, such as a folder to write to."""
    optional = parameter.default is not inspect.Parameter.empty
    if optional and parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
        return Annotated[annotation, tyro.conf.Positional]
    return annotation


def _typed_parameters(function: Callable[..., Any]) -> list[tuple[inspect.Parameter, Any]]:
    """A function's parameters with their types; those of imports for the type checker aside."""
    module = vars(sys.modules[function.__module__])
    return [
        (
            each,
            eval(each.annotation, module) if isinstance(each.annotation, str) else each.annotation,
        )
        for each in inspect.signature(function).parameters.values()
    ]


def _documented(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """What a docstring says before its arguments, and of each of them."""
    about, _, rest = (inspect.getdoc(function) or "").partition("\nArgs:\n")
    found: dict[str, str] = {}
    name = ""
    for line in rest.partition("\n\n")[0].splitlines():
        if not line.startswith("     "):
            name, _, line = line.partition(":")
            name = name.strip()
        found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return about.strip(), found


def run_command(
    name: str,
    function: Callable[..., Any],
    summary: str,
    examples: Sequence[str],
    words: list[str],
    beside: Sequence[str] = (),
) -> int:
    """Parse the words as a function's arguments, call it, and return the exit code.

    Args:
        name: the command's.
        beside: last words of commands that begin with this one's name.
    """
    _refuse_settings_without_value(words)
    about = (inspect.getdoc(function) or summary).split("\nArgs:")[0].strip()
    shown = "\n".join(f"  {example}" for example in examples)
    try:
        with _user_errors(name, function, beside):
            call = tyro.cli(
                _shaped(function),
                prog=f"lmsmith {name}",
                description=f"{about}\n\nExamples:\n{shown}",
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


def _shaped(function: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """The function as tyro reads it: it returns the call, and each option has its metavar."""

    def parsed(*arguments: Any, **options: Any) -> Callable[[], Any]:
        return functools.partial(function, *arguments, **options)

    parameters = [
        each.replace(annotation=_annotation(each, hint))
        for each, hint in _typed_parameters(function)
    ]
    parsed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    parsed.__annotations__ = {each.name: each.annotation for each in parameters}
    parsed.__doc__ = function.__doc__
    return parsed


def _annotation(parameter: inspect.Parameter, hint: Any) -> Any:
    """A parameter's type with what tyro is to know of it."""
    name, required = parameter.name, parameter.default is inspect.Parameter.empty
    metavar = _METAVAR.get(name)
    if typing.get_origin(hint) is Annotated:
        return hint
    if typing.get_origin(hint) in (tuple, Sequence):
        of = typing.get_args(hint)[0]
        if name in POSITIONAL:
            shown = tyro.conf.arg(metavar="MODEL")
            return Annotated[tuple[of, ...], tyro.conf.Positional, shown]  # type: ignore[valid-type]
        if metavar is not None and "," in metavar:
            return Annotated[tuple[of, ...], _comma_list(metavar)]  # type: ignore[valid-type]
        hint = Annotated[tuple[of, ...], tyro.conf.UseAppendAction]  # type: ignore[valid-type]
    if metavar is None or "," in metavar or required:
        return hint
    return Annotated[hint, tyro.conf.arg(metavar=metavar)]


def _comma_list(metavar: str) -> Any:
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: split_words(words[0]),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda value: [",".join(map(str, value))],
    )


def split_words(text: str) -> tuple[str, ...]:
    """What stands between commas."""
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _refuse_settings_without_value(words: Sequence[str]) -> None:
    """``--set KEY VALUE`` and ``--set KEY``: what is meant is one word, KEY=VALUE."""
    for flag, key, value in zip(words, words[1:], [*words[2:], ""], strict=False):
        if flag == "--set" and "=" not in key and not key.startswith("-"):
            value = "VALUE" if not value or value.startswith("--") else value
            raise UserError(f"--set {key}: has no =", f"Write --set '{key}={value}'.")


@contextlib.contextmanager
def _user_errors(name: str, function: Callable[..., Any], beside: Sequence[str]) -> Iterator[None]:
    """What tyro refuses is a `UserError`, in the words of all other messages, without boxes."""
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
    """The error for a command that there is not; it names the nearest, or the one that moved."""
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
