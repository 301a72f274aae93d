"""Options of functions and commands: each has a meaning, the same in Python and in ``--help``."""

from __future__ import annotations

import inspect

import pytest

import lmsmith
from lmsmith import cli
from lmsmith.options import command_line, documented, read_docstring


@pytest.mark.parametrize("command", cli.COMMANDS, ids=[each.name for each in cli.COMMANDS])
def test_every_option_has_a_meaning(command: cli.Command) -> None:
    function = command.load()
    _, meanings, _ = read_docstring(documented(function))
    assert list(meanings) == list(inspect.signature(function).parameters)
    assert all(meanings.values())


def test_the_docstring_says_what_help_says(capsys: pytest.CaptureFixture[str]) -> None:
    _, meanings, after = read_docstring(lmsmith.compare)
    assert after.startswith("Raises:")
    assert "shown both orders" in meanings["judge"]
    assert cli.main(["compare", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(meaning in shown for meaning in meanings.values())


def test_an_unknown_keyword_is_refused() -> None:
    with pytest.raises(TypeError, match="no_such_option"):
        lmsmith.evaluate("one", no_such_option=1)


def test_a_command_line_has_what_differs_from_the_defaults() -> None:
    function = lmsmith.study_finetune
    parameters = inspect.signature(function).parameters.values()
    given = {each.name: each.default for each in parameters} | {"model": "my model"}
    plain = command_line("lmsmith study finetune", function, given)
    assert plain == "lmsmith study finetune 'my model'"
    given |= {"shots": ("0", "4"), "data": "DATA", "quiet": True}
    assert command_line("lmsmith study finetune", function, given) == plain
    given |= {"tasks": ["rte", "cb"], "ablations": True, "limit": 3, "set": ["epochs=1", "a.b=2"]}
    assert command_line("lmsmith study finetune", function, given) == (
        f"{plain} --tasks rte,cb --limit 3 --ablations --set=epochs=1 --set=a.b=2"
    )
