"""Options that several functions and commands share, each documented once: here.

The Python functions (`lmsmith.api`) and the command line (`lmsmith.cli.parsing`) take their
meanings from `MEANINGS`, so that ``help(lmsmith.evaluate)`` and ``lmsmith eval --help`` agree.
"""

from __future__ import annotations

import functools
import inspect
import re
import shlex
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from lmsmith.core.settings import field_meanings

Precision = Literal["auto", "bf16", "fp32"]

Weights = Literal["file", "model", "int8"]
"""As the file has them, a quantised GGUF file's at its own bits; in the precision; in 8 bits."""


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Tasks, and the way models are asked them."""

    tasks: Sequence[str] = ()
    """Names (lmsmith tasks ls), or .toml, .jsonl, .txt or .py files of your own; of a .py file
    every task, or one: my_task.py:MyTask, my_module:MyTask."""
    suite: str = ""
    """Tasks that go together: gpt2, gpt3, chat or safety."""
    shots: Sequence[int | str] = ()
    """Examples before each item, e.g. 0,1,4; fit for as many as the context holds. By default
    what the task says."""
    fixed_shots: bool = False
    """The same examples for all items; else drawn for each."""
    limit: int | None = None
    """Only so many items of each task, drawn by the seed, the same for every model and number of
    shots. With lm-eval's tasks the first ones, as lm-eval takes them."""
    data: Sequence[Path] = ()
    """Where tasks' files are; may be given more than once. Also LMSMITH_DATA."""
    measure: str = ""
    """The headline measure, if not the task's own."""
    seed: int = 0
    """Seed of items drawn, examples, generated items, sampling and intervals."""
    chat: bool = False
    """Ask by the model's chat template."""
    start_of_text: Literal["auto", "always", "never"] = "auto"
    """Whether texts begin with that token; auto: as the tokenizer does."""
    precision: Precision = "auto"
    """Number format of matrix products; auto: bf16 where the processor multiplies it."""
    threads: int = 0
    """CPU threads of one operation; 0 for all cores."""
    contamination: Sequence[Path] = ()
    """Text that a model was trained on (.txt, .jsonl): the score without items that overlap with
    it; may be given more than once."""
    classifier: str = ""
    """Scores toxicity in the patterns' place: a task of your own (lmsmith tasks add) and its label
    for what is toxic."""
    judge: str = ""
    """The model that grades and classifies; by default the one that is measured."""
    folder: Path | None = None
    """Where results go; evals/MODEL by default, evals/MODEL/lm-eval for lm-eval's."""
    quiet: bool = False
    """Show no progress."""

    @property
    def begins(self) -> bool | None:
        """Whether texts begin with the start-of-text token; None: as the tokenizer does."""
        return {"auto": None, "always": True, "never": False}[self.start_of_text]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(TaskOptions):
    """Evaluation of one model."""

    harness: Literal["own", "lm-eval"] = "own"
    """Whose tasks: those of lmsmith tasks ls, or lm-evaluation-harness's, by its names (arc_easy),
    prompts and measures; extra: pip install "lmsmith[harness]"."""
    include_path: Sequence[Path] = ()
    """lm-eval's: a folder of YAML tasks of your own; may be given more than once."""


@dataclass(frozen=True, kw_only=True)
class CompareOptions(TaskOptions):
    """Comparison of several models."""

    stages: bool = False
    """Compare a run's pretrained, SFT and PPO models: what each changed."""
    judge: str = ""
    """The model that grades, classifies and judges: a reward model's folder, or any model that
    writes, shown both orders; or people: labelers, by the pages of lmsmith serve."""
    win_rate: Path | None = None
    """Instructions (.jsonl) to which all models reply as in lmsmith chat; the judge says whose
    reply is better."""
    reply_tokens: int = 256
    """Longest reply to an instruction."""
    greedy: bool = False
    """Reply by the likeliest token each time, not as lmsmith chat draws."""
    labelers: int = 1
    """How many people are to judge each pair."""
    database: str = ""
    """The labelers': a file, or a URL; the server's if it is left out."""
    folder: Path | None = None
    """Where the first model's results go, those of others beside it; evals/MODEL by default."""


MEANINGS = {
    "database": "A file, or a URL such as postgresql://host/name; the server's if it is left out.",
    "draft": "A smaller model of the same tokenizer that guesses ahead, or prompt-lookup, which "
    "guesses what followed before; the text stays the same.",
    "json": "Print one JSON object on standard output, and nothing else there.",
    "model": "A run, a model folder, a Hugging Face folder, a GGUF file or a registered name.",
    "models": "Runs, model folders, Hugging Face folders, GGUF files or registered names.",
    "name": "As the ls command of the group shows it.",
    "role": "A user talks to models; a labeler judges answers too; an admin also sees the "
    "statistics.",
    "temperature": "0 takes the likeliest token every time. As the model's makers advise if not "
    "given, or 0.8.",
    "top_p": "Only the likeliest tokens of this total probability may come; 1 means all. As the "
    "makers advise if not given, or 0.95.",
    **field_meanings(TaskOptions),
}
"""Option → its meaning, where a function's docstring gives no other."""

Fields = ParamSpec("Fields")
Options = TypeVar("Options")
First = TypeVar("First")
Result = TypeVar("Result")
Function = TypeVar("Function", bound=Callable[..., Any])


def takes(
    options: Callable[Fields, Options],
) -> Callable[[Callable[[First, Options], Result]], Callable[Concatenate[First, Fields], Result]]:
    """Let a function take the fields of the dataclass ``options`` as keyword arguments.

    The decorated function gets its first argument, and one object of ``options``.
    """

    def decorate(function: Callable[[First, Options], Result]) -> Any:
        first = next(iter(inspect.signature(function).parameters.values()))
        fields = inspect.signature(options, eval_str=True).parameters.values()
        signature = inspect.Signature([first, *fields])

        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Result:
            given = signature.bind(*arguments, **keywords).arguments
            return function(given.pop(first.name), options(**given))  # type: ignore[call-arg]

        call.__signature__ = signature  # type: ignore[attr-defined]
        return documented(call, MEANINGS | field_meanings(options))  # type: ignore[arg-type]

    return decorate


def documented(function: Function, meanings: dict[str, str] = MEANINGS) -> Function:
    """Complete the ``Args`` of a function's docstring; what it says itself counts."""
    about, own, rest = read_docstring(function)
    lines = [
        textwrap.fill(
            f"{name}: {(meanings | own).get(name, '')}", 96, initial_indent="    ",
            subsequent_indent=" " * 8, break_long_words=False, break_on_hyphens=False,
        )
        for name in inspect.signature(function).parameters
    ]  # fmt: skip
    function.__doc__ = "\n".join([about, "", "Args:", *lines, "", rest]).strip()
    return function


def command_line(name: str, function: Callable[..., Any], given: Mapping[str, Any]) -> str:
    """The command that makes what a call of its function makes, for pages to print.

    What is as by default is left out, and so is where data and results lie.

    Args:
        name: The command's words, e.g. lmsmith study bert.
        given: Every argument's name and value.
    """
    parameters = inspect.signature(function).parameters.values()
    words = [word for each in parameters for word in _option_words(each, given[each.name])]
    return " ".join([name, shlex.join(words)])


def _option_words(parameter: inspect.Parameter, value: Any) -> Iterator[str]:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    words = [str(each) for each in value] if is_list else [str(value)]
    plain = parameter.default
    plain = ",".join(map(str, plain)) if isinstance(plain, tuple) else str(plain)
    option = f"--{parameter.name.replace('_', '-')}"
    if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
        yield from words
    elif parameter.name in ("data", "out", "quiet") or ",".join(words) == plain:
        return
    elif isinstance(value, bool):
        yield option if value else f"--no-{option[2:]}"
    elif parameter.name in ("set", "recipe_set", "distil"):
        yield from (f"{option}={word}" for word in words)
    else:
        yield from (option, ",".join(words))


def read_docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str], str]:
    """A docstring's text before its arguments, the meaning of each, and the text after them."""
    about, *rest = re.split(
        r"\n\n(?=Args:|Returns:|Raises:|>>>)", inspect.getdoc(function) or "", maxsplit=1
    )
    after = "".join(rest)
    found: dict[str, str] = {}
    if after.startswith("Args:"):
        arguments, _, after = after.partition("\n\n")
        for line in arguments.splitlines()[1:]:
            if not line.startswith("     "):
                name, _, line = line.strip().partition(":")
            found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return about, found, after
