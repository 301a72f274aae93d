"""The command line: fast help, one message for a mistake, right exit codes, clean JSON."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lmsmith import cli
from lmsmith.core import recipe as recipes
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.recipe import MachineConfig, Recipe
from lmsmith.stages.pipeline import run_recipe

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "stages"))

import tiny_stages as tiny  # noqa: E402

GOOD = 'description = "small"\nseed = 1\n[make]\n[grow]\nrate = 0.5\n'


@pytest.fixture
def small_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny stages in place of the real ones, a recipe of them shipped, an empty folder."""
    import lmsmith.stages.pipeline

    load_stage_recipe = lmsmith.stages.pipeline.load_stage_recipe

    def load(name: str | Path, overrides: Any = ()) -> Recipe:
        return load_stage_recipe(name, overrides, tiny.STAGES)

    def run(*arguments: Any, **options: Any) -> dict[str, object]:
        return run_recipe(*arguments, **options, stages=tiny.STAGES, prepare=tiny.prepare)

    monkeypatch.setattr(lmsmith.stages.pipeline, "load_stage_recipe", load)
    monkeypatch.setattr(lmsmith.stages.pipeline, "run_recipe", run)
    monkeypatch.setattr(recipes, "shipped_recipes", lambda kind="": {} if kind else {"small": GOOD})
    monkeypatch.chdir(tmp_path)
    return tmp_path


def in_a_process(*words: str) -> subprocess.CompletedProcess[str]:
    source = str(HERE.parent / "src")
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "lmsmith", *words],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["recipes", "ls"], ["--version"]])
def test_help_imports_no_torch(words: list[str]) -> None:
    done = in_a_process(*words)
    assert done.returncode == 0
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "lmsmith.core.errors" in imported
    assert not imported & {"torch", "numpy", "matplotlib"}
    if words == ["--help"]:
        assert "tyro" not in imported


def test_threads_sleep_soon_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    cli.main(["--version"])
    assert os.environ["GOMP_SPINCOUNT"] == "10000"
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    cli.main(["--version"])
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {command.name} " in shown for command in cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help_with_an_example(
    command: cli.Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*command.name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: lmsmith {command.name}")
    assert all(example.split()[0] == "lmsmith" for example in command.examples)
    assert command.examples[0] in shown


def test_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rum", "quickstart"]) == 2
    assert "Did you mean lmsmith run?" in capsys.readouterr().err
    assert cli.main(["recipes", "validat", "x"]) == 2
    assert "Did you mean lmsmith recipes validate?" in capsys.readouterr().err
    assert cli.main(["xyzzy"]) == 2
    assert "The commands: run, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "now"),
    [
        ("task add tone", "tasks add"),
        ("task run tone", "tasks run"),
        ("task", "tasks"),
        ("models export m", "export"),
        ("eval a --compare b", "compare MODEL OTHER"),
        ("eval a --stages", "compare RUN --stages"),
        ("eval a --win-rate f.jsonl", "compare MODEL OTHER --win-rate FILE"),
    ],
)
def test_old_spellings_name_the_new_ones(
    words: str, now: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words.split()) == 2
    assert f"Write lmsmith {now}" in capsys.readouterr().err


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run"]) == 2
    assert cli.main(["run", "small", "--nonsense"]) == 2
    assert capsys.readouterr().out == ""


def in_a_shell(line: str, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """A line of bash, in which "$L" is lmsmith."""
    return subprocess.run(
        ["bash", "-c", line.replace("$L", f"{sys.executable} -m lmsmith")],
        env={**os.environ, "PYTHONPATH": str(HERE.parent / "src"), **variables},
        capture_output=True,
        timeout=120,
    )


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "utf-16"])
def test_every_output_encoding_shows_what_it_can(encoding: str) -> None:
    line = "$L --help && $L users add --help && $L models presets; $L study foo"
    done = in_a_shell(line, PYTHONIOENCODING=encoding)
    assert done.returncode == 2, done.stderr
    assert b"Traceback" not in done.stderr
    said = done.stderr.decode(encoding)
    expected = "expected labels, order, shots, scale, finetune, flan or bert"
    assert said.startswith(f"lmsmith: study: KIND is 'foo'; {expected}")
    shown = done.stdout.decode("utf-16-le" if encoding == "utf-16" else encoding)
    assert "usage: lmsmith COMMAND" in shown
    if encoding == "ascii":
        assert "text -> tokenizer -> GPT" in shown
        assert "| gpt2-xl " in shown


def test_json_is_escaped_where_the_encoding_has_not_all_of_it() -> None:
    code = "from lmsmith.cli.output import print_json; print_json({'a': '你'})"
    for encoding in ("ascii", "utf-8"):
        done = in_a_shell(f'{sys.executable} -c "{code}"', PYTHONIOENCODING=encoding)
        assert json.loads(done.stdout.decode(encoding)) == {"a": "你"}


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("$L --help > /dev/full", 2, b"standard output: cannot be written (No space left"),
        ("$L models presets --json > /dev/full", 2, b"standard output: cannot be written"),
        ("$L models presets | true; exit ${PIPESTATUS[0]}", 141, b""),
        ("$L models presets | head -1; exit ${PIPESTATUS[0]}", 141, b""),
        ("$L --help >&-", 0, b""),
        ("$L nope 2>&-", 2, b""),
        ("$L nope 2>/dev/full", 2, b""),
    ],
)
def test_full_and_closed_outputs(line: str, code: int, said: bytes) -> None:
    done = in_a_shell(line)
    if code == 141 and done.returncode == 0:  # all was written before the reader left
        code = 0
    assert (done.returncode, done.stderr.count(b"\n")) == (code, 2 if said else 0), done.stderr
    assert said in done.stderr


@pytest.mark.parametrize(
    ("line", "problem", "fix"),
    [
        ("study foo", "study: KIND is 'foo'; expected labels, order, shots, scale, finetune", ""),
        ("study scael", "study: KIND is 'scael'", "Did you mean scale?"),
        ("users foo", "users foo: unknown command", "The commands: users add, users ls, users "),
        ("users ad", "users ad: unknown command", "Did you mean lmsmith users add?"),
        ("users add Ann --role labler", "users add: --role is 'labler'", "Did you mean labeler?"),
        ("users add Ann Lee", "users add: 'Lee' is one word too many", ""),
        ("recipes cp", "recipes cp: NAME and FILE are missing", ""),
        ("serve m --prot 3", "serve: --prot is not an option of this", "Did you mean --port?"),
        ("serve m --port", "serve: --port has no value", ""),
        ("serve m --port x", "serve: --port: expected INT (invalid literal", ""),
        ("eval m --limit x", "eval: --limit: expected N (invalid literal for int()", ""),
    ],
)
def test_mistakes_in_a_command_line_are_said_as_all_others(
    line: str, problem: str, fix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(line.split()) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith(f"lmsmith: {problem}")
    assert fix in said[1]
    assert "unknown command" in said[0] or said[1].endswith("its arguments and options.")


def failing(error: BaseException) -> list[cli.Command]:
    """A table with one command, ``fail``, that raises ``error``."""

    def fail() -> None:
        raise error

    class Failing(cli.Command):
        def load(self) -> Any:
            return fail

    return [Failing("fail", "", "fails", ("lmsmith fail",))]


def test_exit_codes_and_messages(capsys: pytest.CaptureFixture[str]) -> None:
    mistake = UserError("my.jsonl, line 3: no 'messages'", "Add them.")
    assert cli.main(["fail"], failing(mistake)) == 2
    assert capsys.readouterr().err == "lmsmith: my.jsonl, line 3: no 'messages'\n  Add them.\n"
    for words in (["--debug", "fail"], ["fail", "--debug"]):
        with pytest.raises(UserError):
            cli.main(words, failing(mistake))
    assert cli.main(["fail"], failing(Interrupted(15))) == 143
    assert capsys.readouterr().err == "saved; run the same command to continue\n"
    assert cli.main(["fail"], failing(KeyboardInterrupt())) == 130
    assert "run the same command to continue" in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):  # a programming error keeps its traceback
        cli.main(["fail"], failing(ZeroDivisionError()))


def test_what_a_model_stands_for_is_said_once(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a command sets up logging, as `serve` does; `caplog` stands for its handler."""

    def command() -> int:
        for _ in range(2):
            logging.getLogger("lmsmith.models").info("runs/a: the model of ppo")
        return 0

    class Telling(cli.Command):
        def load(self) -> Any:
            return command

    assert cli.main(["tell"], [Telling("tell", "", "tells", ("lmsmith tell",))]) == 0
    assert capsys.readouterr().err == "runs/a: the model of ppo\n"
    assert caplog.messages == []


def test_mistake_has_no_traceback_in_a_process() -> None:
    done = in_a_process("run", "no/such.toml")
    message = "".join(
        line for line in done.stderr.splitlines(True) if not line.startswith("import time:")
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert message.startswith("lmsmith: no/such.toml: no such recipe file (looked for ")
    assert "Traceback" not in message
    assert "Traceback" in in_a_process("run", "no/such.toml", "--debug").stderr


def test_run_prints_the_plan_and_runs_nothing(
    small_table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "small", "--dry-run"]) == 0
    assert capsys.readouterr().out == "run       make  not run yet\nrun       grow  not run yet\n"
    assert cli.main(["run", "small", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["stages"]["make"] == {"action": "run", "reason": "not run yet"}
    assert plan["folder"] == "runs/small"
    assert list(small_table.iterdir()) == []


def test_run_prints_only_json_on_standard_output(
    small_table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "small", "--set", "make.steps=2", "--set", "grow.rate=1", "--json"]
    assert cli.main([*words, "--folder", "here"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["stages"]["make"]["metrics"] == {"loss": 0.5}
    assert Path(result["report"]).is_file()
    assert (small_table / "here" / "grow" / "stage.json").is_file()
    assert cli.main(["report", "here", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["wall_seconds"]["make"] > 0


def test_run_shows_lines_then_the_table_and_the_report(
    small_table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["run", "small"]) == 0
    shown = capsys.readouterr()
    assert "make: done in" in shown.err
    assert shown.out.splitlines()[-1].startswith("report: runs/small/")
    Path("runs/small/sft/model").mkdir(parents=True)
    assert cli.main(["run", "small"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "next: lmsmith chat runs/small; or its chat page: lmsmith serve runs/small"
    )
    assert cli.main(["run", "small", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 1
    assert shown.err == ""


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["make.steps", "2"], "Write --set 'make.steps=2'."),
        (["make.steps", "--json"], "Write --set 'make.steps=VALUE'."),
        (["make.steps"], "Write --set 'make.steps=VALUE'."),
    ],
)
def test_a_setting_in_two_words_is_told_how_to_be_written(
    small_table: Path, capsys: pytest.CaptureFixture[str], words: list[str], fix: str
) -> None:
    assert cli.main(["run", "small", "--set", *words]) == 2
    told = capsys.readouterr().err
    assert told == f"lmsmith: --set make.steps: has no =\n  {fix}\n"


def test_bad_settings_are_listed_at_once(
    small_table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "small", "--set", "make.stps=2", "--set", "grow.rate=0"]
    assert cli.main(words) == 2
    message = capsys.readouterr().err
    assert "make.stps = 2: unknown key; did you mean make.steps?" in message
    assert "grow.rate = 0.0: must be above 0; 0.02 is usual" in message
    assert cli.main(["run", "smal"]) == 2
    assert "Did you mean small? Shipped recipes: small." in capsys.readouterr().err


def test_recipes_are_listed_and_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lmsmith.cli.recipes

    for module in (recipes, lmsmith.cli.recipes):
        monkeypatch.setattr(
            module, "shipped_recipes", lambda kind="": {} if kind else {"small": GOOD}
        )
    assert cli.main(["recipes", "ls"]) == 0
    assert capsys.readouterr().out == "small  small\n"
    assert cli.main(["recipes", "ls", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"recipes": {"small": "small"}}
    target = tmp_path / "my.toml"
    assert cli.main(["recipes", "cp", "small", str(target)]) == 0
    copied = target.read_text().splitlines()
    assert [line for line in copied if not line.startswith("#")] == GOOD.splitlines()
    assert "# Seed of all chance: data, weights, samples." in copied
    target.write_text("mine")
    assert cli.main(["recipes", "cp", "small", str(target)]) == 2
    assert target.read_text() == "mine"
    assert cli.main(["recipes", "cp", "small", str(target), "--force"]) == 0
    assert cli.main(["recipes", "cp", "small", str(tmp_path / "folder.toml")]) == 0
    assert cli.main(["recipes", "cp", "smal", str(tmp_path / "x.toml")]) == 2


def test_gains_table_shows_gains_with_their_intervals(tmp_path: Path) -> None:
    from rich.console import Console

    from lmsmith.cli.run import gains_table
    from lmsmith.report.run.gains import Gain

    gain = Gain(
        "ppo", "PPO", "", "done", "wins over SFT", "50 %", "68 %", "[62 to 74 %]", "better", 245, 1
    )
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    console.print(gains_table([gain, replace(gain, stage="sft", wall_seconds=None)]))
    shown = console.export_text()
    console.file.close()
    assert "68 %" in shown
    assert "[62 to 74 %]; gained" in shown
    assert "4 min 05 s" in " ".join(shown.split())


def test_machine_settings_are_described_by_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["machine"]["precision"] in ("bf16", "fp32")
    assert found["hardware"]["cores"] >= 1
    assert found["peak_gflops"]["fp32"] > 0
    assert found["reading_measured"]["precision"] == found["reading_precision"]
    assert found["reading_measured"]["bf16"]["one_row"] > 0
    assert MachineConfig().precision == "auto"


def test_validate_lists_problems_for_people_and_for_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lmsmith.stages.pipeline

    load = lmsmith.stages.pipeline.load_stage_recipe
    monkeypatch.setattr(
        lmsmith.stages.pipeline, "load_stage_recipe", lambda name: load(name, (), tiny.STAGES)
    )
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text(GOOD)
    bad.write_text("[grow]\nrte = 1\n")
    assert cli.main(["recipes", "validate", str(good)]) == 0
    assert capsys.readouterr().out.endswith("no problems; stages: make, grow\n")
    assert cli.main(["recipes", "validate", str(good), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["valid"] is True
    assert cli.main(["recipes", "validate", str(bad)]) == 2
    assert "did you mean grow.rate?" in capsys.readouterr().err
    assert cli.main(["recipes", "validate", str(bad), "--json"]) == 2
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [problem["key"] for problem in problems] == ["grow.rte", "grow"]
