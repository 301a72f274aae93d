"""Whatever models and people say, a terminal shows it and does not obey it."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from lmsmith.cli.output import plain_table, print_json, table_console, visible_output
from lmsmith.core.errors import UserError
from lmsmith.core.terminal import checked, in_one_line, visible, visible_console, visible_json

HOSTILE = "".join(
    map(
        chr,
        (
            *range(32),
            *range(127, 160),
            *(0x061C, 0x200E, 0x200F),
            *range(0x2028, 0x202F),
            *range(0x2066, 0x206A),
        ),
    )
)
DANGEROUS = set(HOSTILE) - {"\n", "\t"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_no_control_character_is_shown() -> None:
    assert not set(visible(HOSTILE)) & DANGEROUS
    assert len(visible(HOSTILE)) == len(HOSTILE)
    assert visible("a\n\tb é 你 🙂 שלום") == "a\n\tb é 你 🙂 שלום"


def test_a_name_is_one_line() -> None:
    assert not set(in_one_line(HOSTILE)) & (set(HOSTILE) - {" "})
    assert len(in_one_line(f"x{HOSTILE}".strip()).splitlines()) == 1
    assert in_one_line("a\tb é 你") == "a b é 你"


def test_tables_show_a_text_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    table = plain_table("model", "rate")
    table.add_row("m\nbest  1.00\r\u2028\x85", "0.50")
    table_console().print(table)
    lines = [line for line in capsys.readouterr().out.splitlines() if "m" in line or "best" in line]
    assert len(lines) == 2  # the head, and the row
    assert "best  1.00" in lines[1]
    assert "0.50" in lines[1]


def test_progress_bars_write_their_line_again_and_nobody_else() -> None:
    for stream in (Terminal(), io.StringIO()):
        checked(stream).write("\rforged\r")
        checked(stream, rewrites=True).write("\r50 %\rforged")
        assert stream.getvalue() == "\ufffdforged\ufffd\r50 %\ufffdforged"


def test_json_loses_nothing() -> None:
    text = visible_json(json.dumps({HOSTILE: HOSTILE}, ensure_ascii=False))
    assert json.loads(text) == {HOSTILE: HOSTILE}
    assert not set(text) & DANGEROUS


def test_prints_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    out, errors = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", errors)
    with visible_output():
        print("Ann", HOSTILE)
        print(UserError(f"no {HOSTILE}"), file=sys.stderr)
        print_json({"name": HOSTILE})
        assert sys.stdout.isatty()
    for stream in (out, errors):
        assert not set(stream.getvalue()) & DANGEROUS
    assert sys.stdout is out


def test_a_pipe_keeps_what_no_terminal_reads() -> None:
    stream = io.StringIO()
    checked(stream).write("\x1b[2J\u202e\x85")  # type: ignore[arg-type]
    assert stream.getvalue() == "\ufffd[2J\u202e\x85"


def test_tables_have_colours_and_no_others_codes() -> None:
    stream = Terminal()
    table = Table("name")
    table.add_row(Text(f"Ann{HOSTILE}", style="red"))
    table.add_row("Bob\x1b]52;c;bHM=\x07")
    console = visible_console(
        checked(stream), width=200, force_terminal=True, color_system="standard", markup=False
    )
    console.print(table)
    console.print("\x1b[2Jhello")
    found = stream.getvalue()
    assert "\x1b[31m" in found
    for code in ("\x1b]52", "\x1b[2J", "\x9b", "\x07", "\u202e"):
        assert code not in found


def test_names_of_earlier_versions_are_shown_harmlessly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sqlalchemy")
    from lmsmith.cli import main
    from lmsmith.feedback.store import Store
    from lmsmith.feedback.tables import Person

    store = Store(tmp_path / "x.db")
    with store.session.begin() as session:
        session.add(Person(name="Ann\x1b]0;owned\x07"))
    store.close()
    assert main(["users", "ls", "--database", str(tmp_path / "x.db")]) == 0
    assert main(["users", "rm", "Bob\x1b[2J", "--database", str(tmp_path / "x.db")]) == 2
    out, errors = capsys.readouterr()
    assert "\x1b" not in out + errors
    assert "Ann\ufffd]0;owned" in out
