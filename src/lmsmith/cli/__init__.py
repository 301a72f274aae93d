"""The ``lmsmith`` command: one table of commands, each imported only when it is run."""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lmsmith.cli.output import (
    READER_GONE,
    encode_output,
    flushed_output,
    print_error,
    visible_output,
)
from lmsmith.cli.processes import is_silent, leaves_it_unsaid
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.text import encodable
from lmsmith.core.version import VERSION

TABLE = """
run = run.run: run a recipe: text → tokenizer → GPT → SFT → reward model → PPO
    lmsmith run quickstart
    lmsmith run my.toml --set ppo.kl_coefficient=0.05 --dry-run
    lmsmith run quickstart --only evaluate
    lmsmith run quickstart --redo reward
    lmsmith run quickstart --processes 2
corpus build = corpus.build: make a corpus of token shards from raw files, to pretrain on
    lmsmith corpus build corpus.toml
    lmsmith corpus build corpus.toml --set workers=8 --set deduplicate.exact=false
    lmsmith corpus build corpus.toml --dry-run
corpus look = corpus.look: show what a model sees around a position of a corpus
    lmsmith corpus look corpora/mine --at 12345
    lmsmith corpus look corpora/mine --at 0 --source books --tokens 400
corpus search = corpus.search: find a phrase in a corpus, and count it
    lmsmith corpus search corpora/mine "to be or not to be"
    lmsmith corpus search corpora/mine "shakespeare" --ignore-case --source crawl --json
    lmsmith corpus search corpora/mine "17 402" --ids
corpus stats = corpus.stats: count a corpus's documents, tokens, languages and scripts
    lmsmith corpus stats corpora/mine
corpus diff = corpus.diff: say which documents another corpus adds, removes and changes, and why
    lmsmith corpus diff corpora/mine corpora/strict
plan = plan.plan: say what a recipe takes of GPUs, how long, and for how much, before it runs
    lmsmith plan quickstart --gpus 1xL4
    lmsmith plan gpt3-175b --gpus 8xH100 --nodes 64 --price 2.5
    lmsmith plan my.toml --gpus 8xA100 --set pretrain.micro_batch_size=4 --json
finetune = finetune.finetune: make a classifier of a model and labelled examples
    lmsmith finetune smollm2-135m sst2 --data DATA
    lmsmith finetune runs/quickstart my_task.toml --set epochs=1 --set adapter.rank=16
offsite emulator = offsite.emulator: make an emulator, on which others tune the model's layers
    lmsmith offsite emulator smollm2-135m --distil texts.jsonl
    lmsmith offsite emulator runs/quickstart --adapter-layers 1 --keep 1 --out runs/emulator
offsite tune = offsite.tune: tune the adapters of an emulator on your own data
    lmsmith offsite tune runs/emulator sst2 --data DATA
    lmsmith offsite tune runs/emulator conversations.jsonl --set sft.epochs=5
offsite plug = offsite.plug: put tuned adapters into the full model
    lmsmith offsite plug smollm2-135m runs/offsite-sst2 --out runs/plugged
offsite compare = offsite.compare: compare it with full fine-tuning, the emulator, and no tuning
    lmsmith offsite compare smollm2-135m sst2 cb --distil texts.jsonl --data DATA
chat = chat.chat: talk with a model
    lmsmith chat runs/quickstart
    lmsmith chat smollm2-135m
generate = generate.generate: continue a text
    lmsmith generate smollm2-135m "The capital of France is"
    lmsmith generate runs/quickstart "I went" --temperature 0 --json
translate = translate.translate: write sentences in another language
    lmsmith translate runs/translate "A dog runs through the snow."
    lmsmith translate runs/translate --input sentences.txt --beam 1
    lmsmith translate runs/translate "A dog runs." --attention --json
embed = encoders.embed: turn texts into vectors that say how alike they are
    lmsmith embed all-minilm-l6-v2 "a cat on a mat" "a kitten on a rug"
    lmsmith embed all-minilm-l6-v2 --file texts.txt --json
fill-mask = encoders.fill_mask: find the words that a text hides, with probabilities
    lmsmith fill-mask runs/bert "I went to the [MASK] yesterday."
eval = eval.evaluate: measure a model on tasks, as the papers did
    lmsmith eval smollm2-135m --tasks lambada,copa --limit 100 --data DATA
    lmsmith eval runs/quickstart --tasks my_task.jsonl --shots 0,4 --json
    lmsmith eval smollm2-135m --harness lm-eval --tasks arc_easy --limit 100
compare = eval.compare: ask models the same items, and say which is better
    lmsmith compare smollm2-135m runs/quickstart --tasks copa --data DATA
    lmsmith compare runs/quickstart --stages --suite gpt3 --limit 100 --data DATA
    lmsmith compare A B --win-rate instructions.jsonl --judge people
score = score.score: score responses with a reward model
    lmsmith score runs/quickstart --prompt "Hi!" --response "Hello." --response "Go away."
    lmsmith score runs/quickstart/reward --input replies.jsonl --json
study = study.study: find out what models take from the examples they are shown
    lmsmith study labels smollm2-135m --tasks boolq --shots 4 --limit 100 --data DATA
    lmsmith study order smollm2-135m --tasks sst2/very --orders 24 --data DATA
    lmsmith study shots runs/small runs/large --tasks scrambles/insertion
study scale = study.study_scale: train tiny models, see what grows with shots and size
    lmsmith study scale
    lmsmith study scale --minutes 60 --sizes 2x32,2x64,3x96,4x128,4x192 --out evals/long
    lmsmith study scale --steps 2000 --json
study finetune = study.study_finetune: compare fine-tuning with prompting, and draw both
    lmsmith study finetune smollm2-135m --tasks sst2 --examples 8,32,128,all --data DATA
    lmsmith study finetune smollm2-135m --tasks rte,cb --seeds 3 --ablations --set adapter.rank=16
study flan = study.study_flan: tune on few and many tasks, measure on unseen kinds of tasks
    lmsmith study flan smollm2-135m --data DATA
    lmsmith study flan smollm2-135m --data DATA --clusters 1,3,all --set flan.examples=2000
study bert = study.study_bert: compare a GPT and a BERT of equal size, data and steps
    lmsmith study bert runs/bert --tasks sst2 --data DATA
    lmsmith study bert runs/bert --tasks sst2,rte --seeds 5 --set epochs=5 --json
serve = lmsmith.server.serve.serve: answer OpenAI's API with models of this machine
    lmsmith serve runs/quickstart
    lmsmith serve smollm2-135m mine=runs/quickstart --port 8080 --weights int8
    lmsmith serve smollm2-135m --host 0.0.0.0 --token SECRET
    lmsmith serve smollm2-135m --root-path /chat --trusted-proxy 127.0.0.1 --allow-host HOST
    lmsmith serve runs/quickstart --draft prompt-lookup
    lmsmith serve base=smollm2-135m law=adapters/law poems=adapters/poems
pull = models.pull: fetch a model, and register its name
    lmsmith pull smollm2-135m
    lmsmith pull all-minilm-l6-v2
    lmsmith pull hf:HuggingFaceTB/SmolLM2-360M-Instruct
export = models.export: write a model for transformers, vLLM or llama.cpp
    lmsmith export runs/quickstart --to hf
    lmsmith export runs/quickstart out --to gguf --type q8_0
    lmsmith export runs/my adapters --to peft --base my-base
report = run.report: rebuild the report of a run or a corpus, or print its metrics
    lmsmith report runs/quickstart
    lmsmith report runs/quickstart --json
    lmsmith report corpora/mine
recipes ls = recipes.list_recipes: list the recipes that come with lmsmith
    lmsmith recipes ls
recipes cp = recipes.copy_recipe: copy a recipe to a file of your own, to change it
    lmsmith recipes cp own my.toml
    lmsmith recipes cp quickstart my.toml
recipes settings = recipes.show_settings: every setting: type, default, range and meaning
    lmsmith recipes settings ppo
    lmsmith recipes settings ppo.gae_lambda
    lmsmith recipes settings improve.gates
    lmsmith recipes settings --json
recipes validate = recipes.validate_recipe: check a recipe, and list every problem in it
    lmsmith recipes validate my.toml
tasks add = tasks.add_task: make a task of a description and a few examples
    lmsmith tasks add tone "Is the review good or bad?" reviews.jsonl --labels good,bad
    lmsmith tasks add city "Name the city." cities.jsonl
tasks run = tasks.run_task: put a task of your own to texts, with each label's probability
    lmsmith tasks run tone smollm2-135m < input.jsonl
    lmsmith tasks run tone runs/quickstart --input reviews.txt
tasks ls = tasks.list_tasks: list the tasks and suites that a model can be measured on
    lmsmith tasks ls
tasks show = tasks.show_task: show a task, and the exact prompt of an item
    lmsmith tasks show lambada --data DATA --shots 2
    lmsmith tasks show arithmetic/2d_plus --shots 4
models ls = models.list_models: list the models that have a name here
    lmsmith models ls
models show = models.show_model: show where a model is from, and its shape
    lmsmith models show smollm2-135m
    lmsmith models show runs/quickstart --json
    lmsmith models show quickstart@2
models rm = models.remove_model: delete a registered model
    lmsmith models rm smollm2-135m
models presets = models.list_presets: list model shapes from GPT-1 to Llama, and their cost
    lmsmith models presets
    lmsmith models presets --json
improve = improve.improve: make the next version from what people judged, with proof
    lmsmith improve runs/quickstart --dry-run
    lmsmith improve quickstart --database chat.db
    lmsmith improve smollm2-135m --data rankings.jsonl --set ppo.iterations=20
    lmsmith improve quickstart --exclude Ann --restart
simulate = improve.simulate: study the whole loop with synthetic labelers in people's place
    lmsmith simulate runs/quickstart
    lmsmith simulate runs/quickstart --rounds 3 --labelers 5 --noise 0.27 --seeds 3 --json
    lmsmith simulate smollm2-135m --rankings rankings.jsonl --data talks.jsonl --seeds 1
models lineage = improve.lineage: show the versions of a model, their evidence and the votes
    lmsmith models lineage quickstart
    lmsmith models lineage quickstart --json
models compare = versions.compare_versions: show versions side by side: gates, verdicts and votes
    lmsmith models compare quickstart
    lmsmith models compare quickstart@3
    lmsmith models compare quickstart@1 quickstart@3 --json
models promote = improve.promote: make a version the one that its name means
    lmsmith models promote quickstart@2 --reason "better in every gate"
models rollback = improve.rollback: return to the version promoted before
    lmsmith models rollback quickstart
feedback export = feedback.export: write what people judged as files that a recipe reads
    lmsmith feedback export data/feedback
    lmsmith feedback export data/feedback --database chat.db --held-out 0.1 --json
feedback import = feedback.import_: read prompts to be labelled, rankings or conversations
    lmsmith feedback import tasks.jsonl --overlap 3
    lmsmith feedback import talks.jsonl --database chat.db --person Ann
feedback sample = feedback.sample: let models answer prompts, and have the answers judged
    lmsmith feedback sample runs/quickstart --prompts prompts.jsonl --answers 4
    lmsmith feedback sample runs/a runs/b --logged --count 50 --overlap 2
    lmsmith feedback sample --kind demonstration --logged
feedback rank = feedback.rank: let models answer prompts, and a model rank the answers
    lmsmith feedback rank runs/a --judge runs/a/reward --prompts prompts.jsonl --rankings ai.jsonl
    lmsmith feedback rank openai:URL --judge openai:URL --prompts prompts.jsonl --rankings ai.jsonl
feedback stats = feedback.stats: show progress, agreement, and which model is best
    lmsmith feedback stats
    lmsmith feedback stats --database chat.db --json
feedback backup = feedback.backup: copy the database into a file, while the server writes
    lmsmith feedback backup backups/monday.db
    lmsmith feedback backup backups/monday.db --database chat.db --json
feedback restore = feedback.restore: put a backup of the database back
    lmsmith feedback restore backups/monday.db
    lmsmith feedback restore backups/monday.db --database chat.db
users add = users.add: let somebody log in to the server
    lmsmith users add Ann
    lmsmith users add Bob --role labeler --database chat.db
users ls = users.list_users: list who may log in
    lmsmith users ls
    lmsmith users ls --database chat.db --json
users token = users.token: give somebody a new token
    lmsmith users token Ann
users role = users.role: give somebody another role
    lmsmith users role Ann labeler
users rm = users.remove: delete somebody and all that is theirs
    lmsmith users rm Ann
doctor = doctor.doctor: show what this machine can do, and what lmsmith will choose on it
    lmsmith doctor
    lmsmith doctor --json
    lmsmith doctor --gpu
"""
"""NAME = MODULE.FUNCTION: SUMMARY, and below it examples; modules are those of this package.

The function's signature and docstring are the command line (see `lmsmith.cli.parsing`).
"""


@dataclass(frozen=True)
class Command:
    """A row of `TABLE`."""

    name: str
    place: str
    summary: str
    examples: tuple[str, ...]

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        module, _, function = self.place.rpartition(".")
        module = module if module.startswith("lmsmith.") else f"lmsmith.cli.{module}"
        found: Callable[..., Any] = getattr(importlib.import_module(module), function)
        return found


def read_table(table: str) -> tuple[Command, ...]:
    """The commands of a table in the form of `TABLE`."""
    commands = []
    for block in re.split(r"\n(?! )", table.strip()):
        line, *examples = block.splitlines()
        name, _, rest = line.partition(" = ")
        place, _, summary = rest.partition(": ")
        commands.append(Command(name, place, summary, tuple(map(str.strip, examples))))
    return tuple(commands)


COMMANDS = read_table(TABLE)


SPINNING = ("GOMP_SPINCOUNT", "10000")
"""Rounds that a thread of PyTorch's waits for the others before it sleeps, some 30 µs; OpenMP reads
it when torch is imported. With its default, milliseconds, threads of a busy machine spend their
share of the cores waiting for one another (docs/log.md)."""


def main(arguments: Sequence[str] | None = None, commands: Sequence[Command] = COMMANDS) -> int:
    """Run a command line and return its exit code.

    A user's mistake ends with one message on standard error and 2; an interruption, once
    everything is saved, with 128 + the signal's number. ``--debug`` anywhere shows tracebacks;
    ``--device`` anywhere says what `lmsmith.device` takes where nothing else is set.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    # Bytes that are no text of the locale come as lone surrogates; a file may be named so.
    words = [word if os.path.lexists(word) else encodable(word) for word in words]
    words = take_device([word for word in words if word != "--debug"])
    encode_output()
    os.environ.setdefault(*SPINNING)
    with visible_output():
        return _run(words, commands, debug)


def take_device(words: list[str]) -> list[str]:
    """The words without ``--device NAME``, which becomes the variable LMSMITH_DEVICE."""
    for place, word in enumerate(words):
        name, equals, value = word.partition("=")
        rest = place + 1 if equals else place + 2
        if name == "--device" and rest <= len(words):
            os.environ["LMSMITH_DEVICE"] = value if equals else words[place + 1]
            return words[:place] + words[rest:]
    return words


def _run(words: list[str], commands: Sequence[Command], debug: bool) -> int:
    log, handler = logging.getLogger("lmsmith.models"), _EachLineOnce()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False  # or `serve`, which sets up logging, would print each line twice
    try:
        with flushed_output():
            return _dispatch(words, commands)
    except UserError as error:
        if debug:
            raise
        if str(error) and not leaves_it_unsaid(error):
            print_error(f"lmsmith: {error}")
        return error.exit_code
    except Interrupted as error:
        if not is_silent() and "LMSMITH_LAUNCHED" not in os.environ:
            print_error("saved; run the same command to continue")
        return error.exit_code
    except MemoryError:
        if debug:
            raise
        print_error(f"lmsmith: {' '.join(words)[:500]}: there is not memory enough for this")
        return UserError.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        print_error("interrupted; run the same command to continue from what was saved")
        return 130
    except BrokenPipeError:
        return READER_GONE
    finally:
        log.removeHandler(handler)
        log.propagate = True


class _EachLineOnce(logging.Handler):
    """Shows each line of a log once, on standard error."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        if (text := record.getMessage()) not in self.shown:
            self.shown.add(text)
            print_error(text)


def _dispatch(words: list[str], commands: Sequence[Command]) -> int:
    if words and words[0] == "--version":
        print(f"lmsmith {VERSION}")
        return 0
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text(commands))
        return 0
    from lmsmith.cli.parsing import run_command, unknown_command
    from lmsmith.core.recipe import device_of_environment

    by_name = {command.name: command for command in commands}
    if not {"-h", "--help"} & {*words}:
        device_of_environment()  # also where nothing computes
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in by_name:
            command = by_name[name]
            if name != "run" and "TORCHELASTIC_RUN_ID" in os.environ:
                problem = f"{name}: torchrun would start it in every process"
                raise UserError(problem, "leave torchrun out; only `lmsmith run` divides its work")
            beside = [other.split()[-1] for other in by_name if other.startswith(f"{name} ")]
            return run_command(
                name, command.load(), command.summary, command.examples, words[length:], beside
            )
    group = [command for command in commands if command.name.startswith(f"{words[0]} ")]
    if group and (len(words) == 1 or words[1] in ("-h", "--help")):
        print(help_text(group))
        return 0
    raise unknown_command(words, list(by_name))


def help_text(commands: Sequence[Command] = COMMANDS) -> str:
    """The text of ``lmsmith --help``."""
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
            "lmsmith --version prints the version; --debug, anywhere, shows tracebacks;",
            "--device cpu, cuda or mps, anywhere, says where models compute.",
            "",
            "To begin: lmsmith run quickstart",
        ]
    )
