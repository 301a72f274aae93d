"""Options of functions and commands: each has a meaning, the same in Python and in ``--help``."""

from __future__ import annotations

import inspect

import pytest

import lmsmith
from lmsmith import cli
from lmsmith.options import documented, read_docstring


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
