"""``lmsmith study bert``: GPT against BERT at equal size, data and steps, on one page."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lmsmith.api import Recorded
from lmsmith.core.errors import UserError
from lmsmith.core.files import growing_rows, read_jsonl, write_json, write_jsonl
from lmsmith.core.progress import choose_progress
from lmsmith.core.version import VERSION
from lmsmith.finetuning import finetune
from lmsmith.options import command_line, documented

STAGES = {"gpt": "pretrain", "bert": "masked_lm"}
"""Model → the stage of the recipe bert that makes it."""

BEGINNING_WORDS, SENTENCE_WORDS, MOST_DRAWN = 6, 10, 20
"""Words of a beginning and of the sentence by default, and tokens that are drawn."""


@dataclass(frozen=True, kw_only=True)
class BertStudy(Recorded):
    """GPT against BERT: what was measured, by task, and the texts of both."""

    tasks: dict[str, Any]


@documented
def study_bert(
    run: Path = Path("runs/bert"),
    *,
    recipe: str = "bert",
    recipe_set: Sequence[str] = (),
    tasks: Sequence[str] = ("sst2",),
    seeds: int = 3,
    examples: int = 0,
    limit: int = 0,
    data: Path | None = None,
    texts: int = 3,
    new_tokens: int = 24,
    sentence: str = "",
    threads: int = 0,
    out: Path = Path("evals/study-bert"),
    set: Sequence[str] = (),
    quiet: bool = False,
) -> BertStudy:
    """Compare a GPT and a BERT of equal size, data and steps: fine-tuned, filling masks, writing.

    Both come from a run of the recipe bert; what of it is not done is run first. Each is fine-tuned
    on the labelled examples with the same settings and seeds, and answers the same test examples.
    The page also shows what each writes, and draws what each token sees: the causal mask and the
    full one, and the attention of one sentence. Run it again after Ctrl-C or a kill: it goes on.

    Args:
        run: The folder of the recipe's run.
        recipe: The recipe of that run, if it is not done: bert, or a .toml file like it.
        recipe_set: Change a setting of the recipe, e.g. masked_lm.tokens=4000000.
        tasks: Shipped tasks with labels (cb, cola, mrpc, rte, sst2) or .toml files.
        seeds: Fine-tuning runs of each model.
        examples: Labelled examples to learn from; 0 for all.
        limit: Only so many test examples, drawn by a seed; 0 for all.
        data: Where the tasks' files are; also LMSMITH_DATA.
        texts: How many beginnings of held-out texts both models continue.
        new_tokens: Tokens of each continuation.
        sentence: The sentence whose attention is drawn; one of the held-out text if left out.
        out: The results and the page go here.
        set: Change a setting of every fine-tuning, e.g. epochs=5, optimiser.learning_rate=3e-4.

    Raises:
        UserError: no such recipe or task, a task of numbers, or data that cannot be learnt from.
        Interrupted: after Ctrl-C, once everything is saved.

    >>> lmsmith.study_bert("runs/bert", tasks=["sst2"], data="data").report # doctest: +SKIP
    """
    arguments = dict(locals())
    from lmsmith.corpus.labelled.task import locate_task
    from lmsmith.evaluation.tasks.data import search_path
    from lmsmith.report.study.bert_page import build_bert_page
    from lmsmith.runs.stage_folder import describe_hardware
    from lmsmith.studies.bert import MODELS, compare, masked_accuracy

    for name, value, least in (
        ("seeds", seeds, 1),
        ("texts", texts, 0),
        ("new-tokens", new_tokens, 1),
    ):
        if value < least:
            raise UserError(f"--{name} {value}: must be {least} or more", f"e.g. --{name} 3")
    path = search_path([data] if data else [])
    located = [locate_task(word, path).task for word in tasks]
    for task in located:
        if task.numbers or "accuracy" not in task.chosen_measures:
            raise UserError(
                f"--tasks {task.name}: it has no accuracy to compare",
                "name tasks with labels, such as sst2,rte",
            )
    run = Path(run)
    records = _made(run, recipe, recipe_set, threads, quiet)
    common = ["lm_weight=0", f"examples={examples}", f"test_examples={limit}"]
    common += [f"machine.threads={threads}", *set]
    found: dict[str, Any] = {}
    for word, task in zip(tasks, located, strict=True):
        runs: dict[str, list[dict[str, list[float]]]] = {name: [] for name in MODELS}
        for seed in range(seeds):
            for name in MODELS:
                base, settings = run / STAGES[name] / "model", [*common, f"seed={seed}"]
                runs[name].append(
                    _answers(base, name, word, data, settings, out / task.name, quiet)
                )
        found[task.name] = compare(runs["gpt"], runs["bert"]).as_dict()
    hardware = describe_hardware()
    record = {
        "study": "bert",
        "version": VERSION,
        "run": str(run),
        "hardware": hardware,
        "settings": common,
        "models": {name: _described(records[name]) for name in MODELS},
        "masked": {k: vars(v) for k, v in masked_accuracy(records["bert"]["metrics"]).items()},
        "tasks": found,
        **_shown(run, texts, new_tokens, sentence, threads),
    }
    write_json(out / "results.json", record)
    page = build_bert_page(out, record, command_line("lmsmith study bert", study_bert, arguments))
    return BertStudy(record=record, tasks=found, report=page)


def _made(
    run: Path, recipe: str, settings: Sequence[str], threads: int, quiet: bool
) -> dict[str, dict[str, Any]]:
    """The records of both stages; what is not done of the run is done first.

    Raises:
        UserError: also where the run is of a recipe without one of them.
    """
    from lmsmith.runs.integrity import finished_record
    from lmsmith.stages.pipeline import load_stage_recipe, run_recipe

    records = {name: finished_record(run / stage) for name, stage in STAGES.items()}
    if None in records.values():
        loaded = load_stage_recipe(recipe, [f"machine.threads={threads}", *settings])
        if lacking := [stage for stage in STAGES.values() if stage not in loaded.stages]:
            raise UserError(
                f"--recipe {recipe}: it has no stage {' and no stage '.join(lacking)}",
                "write both tables: lmsmith recipes cp bert my.toml shows them",
            )
        run_recipe(loaded, run, progress=choose_progress(f"study bert: {recipe}", quiet))
        records = {name: finished_record(run / stage) for name, stage in STAGES.items()}
    return {name: each for name, each in records.items() if each is not None}


def _described(record: Mapping[str, Any]) -> dict[str, Any]:
    """Size, tokens read and updates of a pretrained model."""
    settings, metrics = record["settings"], record["metrics"]
    return {
        "parameters": int(metrics["parameters"]),
        "tokens": int(settings["tokens"]),
        "updates": max(1, round(settings["tokens"] / settings["batch_tokens"])),
        "predicted_share": float(settings.get("masked_fraction", 1.0)),
        "seconds": float(record.get("wall_seconds") or 0.0),
    }


def _answers(
    base: Path,
    name: str,
    task: str,
    data: Path | None,
    settings: Sequence[str],
    folder: Path,
    quiet: bool,
) -> dict[str, list[float]]:
    """Whether each test example was answered rightly by one fine-tuned model.

    They are kept in place of its weights, and measured again where anything has changed.
    """
    from lmsmith.catalogue.versions import hash_files, hash_model
    from lmsmith.corpus.labelled.task import locate_task
    from lmsmith.evaluation.tasks.data import search_path
    from lmsmith.studies.bert import answered

    files = hash_files(locate_task(task, search_path([data] if data else [])).files)
    key = json.dumps([name, hash_model(base), task, files, list(settings), VERSION])
    kept = folder / "answers.jsonl"
    rows: list[dict[str, Any]] = growing_rows(kept)
    for row in rows:
        if row["key"] == key:
            before: dict[str, list[float]] = row["answers"]
            return before
    work = folder / "work" / f"{name}-{settings[-1].replace('=', '-')}"
    finetune(str(base), task, data=data, out=work, set=settings, quiet=quiet)
    found = answered([row for _, row in read_jsonl(work / "finetune" / "predictions.jsonl")])
    write_jsonl(kept, [*rows, {"key": key, "answers": found}])
    shutil.rmtree(work)
    return found


def _shown(run: Path, texts: int, new_tokens: int, sentence: str, threads: int) -> dict[str, Any]:
    """Texts that both write, and the attention of one sentence in both."""
    import torch

    from lmsmith.core.recipe import MachineConfig
    from lmsmith.generation.mask_writing import MaskWriting, write_by_masks
    from lmsmith.library import load
    from lmsmith.models.folder import load_kind
    from lmsmith.models.masked_lm import MaskedLM
    from lmsmith.tokenizers.word_piece import Frame

    gpt = load(run / STAGES["gpt"] / "model", machine=MachineConfig(threads=threads))
    bert = load_kind(run / STAGES["bert"] / "model", MaskedLM, "name a run of the recipe bert")
    known = _held_out(run, texts)
    tokenizer = gpt.tokenizer
    written = []
    for seed, text in enumerate(known[:texts]):
        beginning = " ".join(text.split()[:BEGINNING_WORDS])
        drawn = {"max_new_tokens": new_tokens, "temperature": 1.0, "top_p": 1.0, "seed": seed}
        by_gpt = gpt.generate(beginning, **drawn)  # type: ignore[arg-type]
        by_bert = write_by_masks(bert, tokenizer, beginning, MaskWriting(new_tokens, seed=seed))
        written.append({"beginning": beginning, "gpt": by_gpt.strip(), "bert": by_bert})
    sentence = sentence or " ".join(" ".join(known[:1]).split()[:SENTENCE_WORDS])
    if not sentence:
        raise UserError("no text is held out to draw the attention of", "give --sentence TEXT")
    frame, tokens = Frame.of(tokenizer), tokenizer.encode(sentence)[: MOST_DRAWN - 2]
    framed = [frame.cls, *tokens, frame.sep]
    with torch.inference_mode():
        layers = {
            "gpt": gpt.decoder.attention_weights(framed, len(framed)),
            "bert": bert.encoder.attention_weights(framed, len(framed)),
        }
    pieces = [tokenizer.decode([token], special=True).strip() for token in framed]
    means = {name: [each.mean(dim=0).tolist() for each in of] for name, of in layers.items()}
    return {"texts": written, "sentence": {"tokens": pieces, "attention": means}}


def _held_out(run: Path, count: int) -> list[str]:
    """The first held-out texts of a run."""
    from lmsmith.corpus.rows import read_documents, rows_of_split

    documents = rows_of_split(read_documents, run / "data" / "validation_documents.jsonl")
    return [document.text for document in islice(documents, max(1, count))]
