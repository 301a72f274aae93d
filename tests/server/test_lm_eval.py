"""lm-eval's local-completions against the server: the scores of its own model class, item by item.

Its requests are token ids, and it finds the tokenizer through the server. The other side is HFLM on
the same weights, exported for transformers.
"""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from worlds import CONTEXT, RANDOM, TOKENIZER, Running, read

from lmsmith.catalogue.export import export

WORDS = ["what", "do", "you", "like", "I", "rain", "and", "tea", "said", "cat", "é", "你"]


def text(source: random.Random, most: int) -> str:
    return " ".join(source.choices(WORDS, k=source.randint(2, most)))


def tasks(folder: Path, source: random.Random) -> list[dict[str, Any]]:
    """Tasks of each kind of request that lm-eval makes."""
    rows = [
        {
            "query": text(source, 12),
            "choices": [text(source, 6), text(source, 4), text(source, 2)],
            "gold": source.randrange(3),
        }
        for _ in range(8)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(folder / "rows.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
        "test_split": "test",
        "doc_to_text": "{{query}}",
    }
    exact = {"metric": "exact_match", "ignore_case": False}
    return [
        {
            **shared, "task": "choice", "output_type": "multiple_choice",
            "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}",
            "metric_list": [{"metric": name} for name in ("acc", "acc_norm")],
        },
        {
            **shared, "task": "cloze", "output_type": "loglikelihood",
            "doc_to_target": " {{choices[0]}}", "target_delimiter": "",
            "metric_list": [{"metric": name} for name in ("perplexity", "acc")],
        },
        {
            **shared, "task": "rolling", "output_type": "loglikelihood_rolling",
            "doc_to_text": "", "doc_to_target": "{{query}} {{choices[1]}}",
            "metric_list": [{"metric": name} for name in ("word_perplexity", "bits_per_byte")],
        },
        {
            **shared, "task": "writing", "output_type": "generate_until",
            "doc_to_target": "{{choices[0]}}", "metric_list": [exact],
            "generation_kwargs": {"until": ["a", "\n"], "max_gen_toks": 12, "do_sample": False},
        },
    ]  # fmt: skip


def test_the_scores_are_those_of_lm_evals_own_class(
    seed: int, served: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra [harness])")
    pytest.importorskip("tenacity", reason="lm-eval's api extra is not installed ([clients])")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    export(read(RANDOM), tmp_path / "theirs", "hf")
    source = random.Random(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.models.openai_completions import LocalCompletionsAPI
        from lm_eval.tasks import TaskManager

        own = HFLM(
            pretrained=str(tmp_path / "theirs"), device="cpu", dtype="float32", batch_size=4,
            add_bos_token=False,
        )  # fmt: skip
        ours = LocalCompletionsAPI(
            model="random", base_url=f"{served.address}/v1/completions", max_length=CONTEXT,
            batch_size=4, num_concurrent=1, max_retries=1,
        )  # fmt: skip
        assert ours.tokenizer_backend == "remote"
        assert ours.tokenized_requests
        assert ours.prefix_token_id == own.prefix_token_id == TOKENIZER.start_of_text
        asked = tasks(tmp_path, source)
        no_others = TaskManager(include_defaults=False)
        expected, found = (
            simple_evaluate(
                each, tasks=asked, bootstrap_iters=0, log_samples=True, task_manager=no_others
            )
            for each in (own, ours)
        )
    for task in ("choice", "cloze", "rolling", "writing"):
        compare(found, expected, task)


def compare(found: Any, expected: Any, task: str) -> None:
    """The same scores to three decimals, and every log-likelihood as well."""
    scores, known = found["results"][task], expected["results"][task]
    numbers = [name for name, value in known.items() if isinstance(value, float)]
    assert numbers
    for name in numbers:
        assert scores[name] == pytest.approx(known[name], abs=5e-4, rel=1e-4), name
    pairs = zip(
        *(
            sorted(side["samples"][task], key=lambda row: row["doc_id"])
            for side in (found, expected)
        ),
        strict=True,
    )
    for ours, own in pairs:
        for mine, theirs in zip(ours["filtered_resps"], own["filtered_resps"], strict=True):
            if isinstance(theirs, str):
                # A character that the end cuts in half: they write U+FFFD for it, we leave it out.
                assert mine.rstrip("\ufffd") == theirs.rstrip("\ufffd")
            elif isinstance(theirs, list | tuple):
                assert float(mine[0]) == pytest.approx(float(theirs[0]), abs=5e-4)
                assert str(mine[1]) == str(theirs[1])
            else:
                assert float(mine) == pytest.approx(float(theirs), abs=5e-4)
