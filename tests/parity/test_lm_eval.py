"""The same numbers as lm-evaluation-harness, item by item, on the same random weights.

lm-eval reads the model through transformers, from the folder that we export. Tolerance: 1e-4 in
every log-likelihood, and the same items right. Skipped where lm-eval is not installed.
"""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsmith.catalogue.export import export
from lmsmith.catalogue.reading import ReadModel, read_model
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.evaluation.methods.perplexity import window_pairs
from lmsmith.evaluation.model import EvaluatedModel, make_evaluated_model
from lmsmith.evaluation.run import evaluate_task
from lmsmith.evaluation.tasks.spec import DataSpec, PromptSpec, TaskSetting, TaskSpec
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import resolve_machine

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra [harness])")
pytest.importorskip("transformers")

WORDS = "the dog ran to a river and sat on some mat by our little house near blue sea"


def text(generator: torch.Generator, most: int) -> str:
    count = int(torch.randint(2, most, (), generator=generator))
    picks = torch.randint(len(WORDS.split()), (count,), generator=generator).tolist()
    return " ".join(WORDS.split()[pick] for pick in picks)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluatedModel, Any]:
    """One model, as our subject and as lm-eval's."""
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp("models")
    tokenizer = Tokenizer.train([WORDS, "Question: Answer: é ."] * 4, 320)
    config = ModelConfig(2, 32, 2, 64, tokenizer.vocabulary_size)
    decoder = Decoder(config).eval()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3)
    save_model(folder / "ours", decoder, tokenizer, {})
    read: ReadModel = read_model(folder / "ours")
    export(read, folder / "theirs", "hf")
    machine = replace(resolve_machine(MachineConfig(threads=1)), precision="fp32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = HFLM(
            pretrained=str(folder / "theirs"), device="cpu", dtype="float32", batch_size=3
        )
    return make_evaluated_model(read, machine), theirs


def their_samples(theirs: Any, task: dict[str, Any], rows: list[dict[str, Any]], path: Path) -> Any:
    """lm-eval's samples of a task of JSONL rows."""
    from lm_eval import simple_evaluate

    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    config = {
        "task": "made",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(file)}, "cache_dir": str(path / "cache")},
        "test_split": "test",
        **task,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = simple_evaluate(
            model=theirs, tasks=[config], num_fewshot=0, bootstrap_iters=0, log_samples=True
        )
    return sorted(found["samples"]["made"], key=lambda sample: sample["doc_id"])


def our_rows(subject: EvaluatedModel, task: TaskSpec, path: Path) -> list[dict[str, Any]]:
    result = evaluate_task(subject, task, TaskSetting(), [path], path / "out", QuietProgress())
    rows = [json.loads(line) for line in result.log.read_text().splitlines()]
    return sorted(rows, key=lambda row: int(row["id"]))


def test_multiple_choice(models: tuple[EvaluatedModel, Any], tmp_path: Path) -> None:
    subject, theirs = models
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    rows = [
        {
            "query": text(generator, 12),
            "choices": [text(generator, 6), text(generator, 6) + " é", text(generator, 4)],
            "gold": int(torch.randint(3, (), generator=generator)),
        }
        for _ in range(24)
    ]
    samples = their_samples(
        theirs,
        {
            "output_type": "multiple_choice",
            "doc_to_text": "{{query}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
            "metric_list": [{"metric": m} for m in ("acc", "acc_norm", "acc_mutual_info")],
        },
        rows,
        tmp_path,
    )
    task = TaskSpec(
        "made",
        "multiple_choice",
        DataSpec(file="rows.jsonl"),
        headline="accuracy_unconditional",
        prompt=PromptSpec(context="{{ query }}", choices="choices", gold="gold", answer_context=""),
    )
    for ours, sample in zip(our_rows(subject, task, tmp_path), samples, strict=True):
        given = [float(each[0]) for each in sample["filtered_resps"]]
        totals = [each["log_prob"] for each in ours["choices"]]
        assert totals == pytest.approx(given[: len(totals)], abs=1e-4)
        assert ours["metrics"]["accuracy"] == sample["acc"]
        assert ours["metrics"]["accuracy_per_character"] == sample["acc_norm"]
        assert ours["metrics"]["accuracy_unconditional"] == sample["acc_mutual_info"]


def test_last_words(models: tuple[EvaluatedModel, Any], tmp_path: Path) -> None:
    subject, theirs = models
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    rows = [
        # Some are longer than the context, and lose their beginning.
        {"context": text(generator, 90), "continuation": text(generator, 3)}
        for _ in range(24)
    ]
    samples = their_samples(
        theirs,
        {
            "output_type": "loglikelihood",
            "doc_to_text": "{{context}}",
            "doc_to_target": " {{continuation}}",
            "target_delimiter": "",
            "metric_list": [{"metric": m} for m in ("perplexity", "acc")],
        },
        rows,
        tmp_path,
    )
    task = TaskSpec(
        "made",
        "cloze",
        DataSpec(file="rows.jsonl"),
        prompt=PromptSpec(context="{{ context }}", target="{{ continuation }}"),
    )
    ours = our_rows(subject, task, tmp_path)
    assert any(row["truncated"] for row in ours)
    for row, sample in zip(ours, samples, strict=True):
        log_prob, greedy = sample["filtered_resps"][0]
        assert row["log_prob"] == pytest.approx(float(log_prob), abs=1e-4)
        assert row["metrics"]["accuracy"] == float(greedy in (True, "True"))


def test_rolling_perplexity(models: tuple[EvaluatedModel, Any]) -> None:
    from lm_eval.api.instance import Instance

    from lmsmith.evaluation.methods.likelihood import LikelihoodReader

    subject, theirs = models
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    documents = [text(generator, most) for most in (5, 60, 200)]
    asked = [
        Instance("loglikelihood_rolling", {}, (each,), number)
        for number, each in enumerate(documents)
    ]
    theirs.add_bos_token = False  # else it reads the start token twice, and scores the second
    expected = theirs.loglikelihood_rolling(asked)
    theirs.add_bos_token = None
    reader, tokenizer = LikelihoodReader(subject.model), subject.tokenizer
    for document, total in zip(documents, expected, strict=True):
        tokens = [tokenizer.start_of_text, *tokenizer.encode(document)]
        pairs = window_pairs(tokens, subject.context, overlap=0.0)
        assert sum(each.total for each in reader.read(pairs)) == pytest.approx(total, abs=1e-3)
