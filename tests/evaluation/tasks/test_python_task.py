"""Classes become tasks; what is wrong with them is told by file and line; only named code runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lmsmith.core.errors import UserError
from lmsmith.evaluation.tasks.data import read_data
from lmsmith.evaluation.tasks.prompts import draw_shots, with_shots, write_question
from lmsmith.evaluation.tasks.python_task import PythonTask, names_python, python_tasks
from lmsmith.evaluation.tasks.shipped import find_tasks
from lmsmith.evaluation.tasks.spec import TaskSpec

PICK = '''
from dataclasses import dataclass

@dataclass
class Row:
    word: str
    gold: int

class Pick:
    """Which word follows."""
    kind = "multiple_choice"
    shots = 1
    delimiter = " -> "
    def items(self):
        for n, word in enumerate(["sun", "sea", "sky"]):
            yield Row(word, n % 2)
    def prompt(self, row):
        return f"{row.word}:"
    def choices(self, row):
        return [row.word, row.word.upper()] + (["all"] if row.word == "sky" else [])
    def gold(self, row):
        return row.gold
'''


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def made(text: str, name: str = "pick.py") -> PythonTask:
    Path(name).write_text(text)
    return next(iter(python_tasks(name).values()))


def refused(text: str, change: tuple[str, str] = ("", "")) -> str:
    """What reading the task and writing all its items says."""
    assert change[0] in text

    def write_all() -> None:
        task = made(text.replace(*change))
        for item in read_data(task, []).items:
            write_question(task, item)

    with pytest.raises(UserError) as told:
        write_all()
    return str(told.value)


def test_a_class_writes_its_rows_prompts_and_shots() -> None:
    task = made(PICK)
    assert (task.name, task.kind, task.about, task.shots) == (
        "pick",
        "multiple_choice",
        "Which word follows.",
        1,
    )
    data = read_data(task, [])
    asked = data.items[2]
    drawn = draw_shots(data.pool, asked, 2, 0)
    question = with_shots(task, asked, drawn)
    shown = {"sun": "sun: -> sun", "sea": "sea: -> SEA"}
    order = [str(item.fields["word"]) for item in drawn]
    assert sorted(order) == ["sea", "sun"]
    assert question.contexts == ("\n\n".join([*(shown[word] for word in order), "sky:"]),)
    assert question.choices == ("sky", "SKY", "all")  # others have two
    assert question.gold == 0
    assert len(write_question(task, data.items[0]).choices) == 2


def test_examples_of_its_own_are_the_pool_and_the_seed_is_given() -> None:
    examples = "    def examples(self, seed):\n        yield Row(f'x{seed}', 0)\n"
    data = read_data(made(PICK + examples), [], seed=7)
    assert [item.fields["word"] for item in data.pool] == ["x7"]
    assert len(data.items) == 3


def test_rows_of_a_file_and_templates_are_taken_as_in_toml(here: Path) -> None:
    (here / "rows.jsonl").write_text('{"q": "a", "right": "b"}\n{"q": "c", "right": "d"}\n')
    task = made(
        "class Reads:\n"
        '    kind = "cloze"\n'
        '    data = {"file": "rows.jsonl"}\n'
        '    prompt = "say {{ q }}"\n'
        "    def target(self, row):\n"
        '        return row["right"] * 2\n'
    )
    question = write_question(task, read_data(task, [here]).items[1])
    assert (question.contexts, question.choices) == (("say c",), ("dd",))


def test_a_perplexity_yields_texts() -> None:
    task = made('class T:\n    kind = "perplexity"\n    def items(self):\n        return ["a b"]\n')
    assert write_question(task, read_data(task, []).items[0]).choices == ("a b",)


def test_a_changed_file_or_row_has_another_fingerprint() -> None:
    def fingerprint(text: str) -> str:
        return read_data(made(text), []).fingerprint

    assert fingerprint(PICK) == fingerprint(PICK)
    assert fingerprint(PICK) != fingerprint(PICK + "# a word more\n")
    seeded = PICK.replace("items(self)", "items(self, seed)").replace('"sky"]', '"sky", str(seed)]')
    task = made(seeded)
    assert read_data(task, [], 1).fingerprint != read_data(task, [], 2).fingerprint


def test_several_classes_are_several_tasks_and_one_can_be_named(here: Path) -> None:
    (here / "two_tasks.py").write_text(PICK + "class Second(Pick):\n    shots = 3\n")
    assert list(python_tasks("two_tasks.py")) == ["two_tasks/Pick", "two_tasks/Second"]
    assert [task.shots for task in python_tasks("two_tasks.py:Second").values()] == [3]
    by_module = python_tasks("two_tasks:Second")
    assert list(by_module) == ["two_tasks/Second"]
    with pytest.raises(UserError, match="did you mean Second"):
        python_tasks("two_tasks.py:Secund")
    for word in ("nowhere_at_all:Task", "nowhere_at_all.inner:Task"):
        with pytest.raises(UserError, match="no such module"):
            python_tasks(word)
    (here / "broken_outside").mkdir()
    (here / "broken_outside" / "__init__.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        python_tasks("broken_outside.inner:Task")
    with pytest.raises(UserError, match=r"gone\.py: cannot be read"):
        python_tasks("gone.py")


def test_only_words_of_code_are_code() -> None:
    assert all(map(names_python, ["a.py", "/x/a.py:B", "pkg.mod:B"]))
    assert not any(map(names_python, ["copa", "wikitext2/x", "a.toml", "rows.jsonl", "a.pyc"]))


def test_code_is_run_only_where_the_user_names_it(here: Path) -> None:
    (here / "trap.py").write_text("open('ran', 'w').close()\n" + PICK)
    for word in ("trap.py", "trap:Pick"):
        with pytest.raises(UserError, match="run only where --tasks names it"):
            find_tasks([word])
    assert not (here / "ran").exists()
    assert [task.name for task in find_tasks(["trap.py"], run_python=True)] == ["trap"]
    assert (here / "ran").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            ("return row.gold", "return row.gould"),
            "pick.py, line 22, in gold(row), items(), row 1: Attr",
        ),
        (("return row.gold", "raise SystemExit"), "line 22, in gold(row)"),
        (("return row.gold", "return 5"), "row 1: gold is 5"),
        (("return row.gold", "return -1"), "row 1: gold is -1"),
        (("return row.gold", "return None"), "gave None"),
        (("return row.gold", "return 'sun'"), "the number of the right choice"),
        (('return f"{row.word}:"', "return 3"), "gave 3"),
        (("yield Row(word, n % 2)", "yield 3"), "row 1: it is int"),
        (("yield Row(word, n % 2)", "yield from ()\n            1 / 0"), "line 17, in items()"),
        (("for n, word in enumerate(", "return ()\n        for n, word in enumerate("), "no rows"),
        (("def gold", "def gild"), "no method gold"),
        (("def choices", "def choosing"), "no method choices"),
        (("def items", "def itemz"), "no method items, and no data"),
        (('"multiple_choice"', '"multiple"'), "kind"),
        (("shots = 1", "shot = 1"), "did you mean shots"),
        (("shots = 1", "shots = 'x'"), "must be a whole number"),
        (("[row.word, row.word.upper()]", "[row.word]"), "1 choice\n"),
        (("[row.word, row.word.upper()] +", "row.word or"), "a list of texts"),
        (("    kind =", "    data = {'file': 'x'}\n    kind ="), "both data and items()"),
        (("    kind =", "    def measure(self, r, a): pass\n    kind ="), "goes with free_form"),
        (("class Pick:", "class Pick(:"), "pick.py, line 9, in the file: SyntaxError"),
        (("class Pick:", "import no_such_thing\nclass Pick:"), "install no_such_thing"),
        (("    kind =", "    kin ="), "the file defines no task"),
    ],
)
def test_what_is_wrong_is_one_message(change: tuple[str, str], said: str) -> None:
    assert said in refused(PICK, change)


def test_what_code_prints_is_kept_from_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    task = made("print('loading')\n" + PICK.replace("return row.gold", "print(1); return 0"))
    read_data(task, [])
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.startswith("loading\n1\n")


def test_a_task_from_toml_cannot_name_an_author() -> None:
    assert "author" not in TaskSpec.__dataclass_fields__


def test_a_multiple_choice_without_a_prompt_has_no_context() -> None:
    """As with TOML's: the choices alone are compared."""
    task = made(PICK.replace("def prompt", "def _prompt"))
    assert write_question(task, read_data(task, []).items[0]).contexts == ("",)
