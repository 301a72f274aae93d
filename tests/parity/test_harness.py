"""Our model class inside lm-evaluation-harness against its own for transformers, item by item.

The same random weights, on local YAML tasks over a JSON file; log-likelihoods within 1e-3, and the
same texts and items right. Skipped where lm-eval is not installed.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsmith.catalogue.export import export
from lmsmith.catalogue.reading import ReadModel, read_model
from lmsmith.core.recipe import MachineConfig
from lmsmith.evaluation.model import EvaluatedModel, make_evaluated_model
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import resolve_machine

pytest.importorskip("lm_eval", reason="lm-eval is not installed (extra [harness])")
pytest.importorskip("transformers")

WORDS = ["the", "dog", "ran", "to", "a", "river", "and", "sat", "on", "some", "mat", "by", "our"]
CONTEXT = 96

TASKS = {
    "choose": """
output_type: multiple_choice
doc_to_text: "{{query}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list: [{metric: acc}, {metric: acc_norm}, {metric: acc_mutual_info}]
""",
    "last_words": """
output_type: loglikelihood
doc_to_text: "{{passage}}"
doc_to_target: " {{choices[0]}}"
target_delimiter: ""
metric_list: [{metric: acc}, {metric: perplexity}]
""",
    "whole": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{passage}} {{query}}"
metric_list: [{metric: bits_per_byte}, {metric: word_perplexity}]
""",
    "write": """
output_type: generate_until
doc_to_text: "{{passage}} so"
doc_to_target: "{{query}}"
generation_kwargs: {until: ["\\n", "river"], max_gen_toks: 24, do_sample: false}
metric_list: [{metric: exact_match}]
""",
}
DATA = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
test_split: test
fewshot_split: test
"""


def words(generator: torch.Generator, most: int) -> str:
    count = int(torch.randint(2, most, (), generator=generator))
    picks = torch.randint(len(WORDS), (count,), generator=generator).tolist()
    return " ".join(WORDS[pick] for pick in picks)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of YAML tasks over one file of random rows."""
    folder = tmp_path_factory.mktemp("tasks")
    generator = torch.Generator().manual_seed(torch.seed() % 2**31)
    rows = [
        {
            "query": words(generator, 12) + " " * (number % 3),
            "passage": words(generator, 4 if number % 2 else 150),
            "choices": [words(generator, 6), words(generator, 6) + " é", words(generator, 4)],
            "gold": int(torch.randint(3, (), generator=generator)),
        }
        for number in range(16)
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    data = DATA.format(file=folder / "rows.json", cache=folder / "cache")
    for name, text in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{data}{text}")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluatedModel, Any, Path]:
    """One model: as our subject, as lm-eval's class for transformers, and its folder."""
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp("models")
    tokenizer = Tokenizer.train([" ".join(WORDS), "Question: Answer: é ."] * 4, 320)
    decoder = Decoder(ModelConfig(2, 32, 2, CONTEXT, tokenizer.vocabulary_size)).eval()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3)
    save_model(folder / "ours", decoder, tokenizer, {})
    read: ReadModel = read_model(folder / "ours")
    export(read, folder / "theirs", "hf")
    machine = replace(resolve_machine(MachineConfig(threads=1)), precision="fp32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # One at a time: their padding to the left changes nothing then.
        theirs = HFLM(
            pretrained=str(folder / "theirs"),
            device="cpu",
            dtype="float32",
            batch_size=1,
            add_bos_token=False,
        )
    return make_evaluated_model(read, machine, begins=False), theirs, folder / "ours"


def asked(model: Any, folder: Path, **settings: Any) -> Any:
    """lm-eval's results with samples, all tasks of the folder."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from lmsmith.evaluation.harness_tasks import quiet_and_offline_if_need_be

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    with warnings.catch_warnings(), quiet_and_offline_if_need_be():
        warnings.simplefilter("ignore")
        return simple_evaluate(
            model=model, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, **settings
        )


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="plain"),
        pytest.param({"num_fewshot": 2}, id="shots"),
        pytest.param({"apply_chat_template": True}, id="chat"),
        pytest.param({"apply_chat_template": True, "num_fewshot": 1}, id="chat with a shot"),
    ],
)
def test_the_samples_are_those_of_lm_evals_own_class(
    models: tuple[EvaluatedModel, Any, Path],
    tasks: Path,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lm_eval.api.registry import get_model

    from lmsmith.evaluation.harness import HarnessModel

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    subject, theirs, _ = models
    assert get_model("lmsmith") is HarnessModel
    ours = HarnessModel(subject=subject)
    mine, expected = asked(ours, tasks, **settings), asked(theirs, tasks, **settings)
    assert ours.truncated > 0
    for name in TASKS:
        pairs = list(zip(mine["samples"][name], expected["samples"][name], strict=True))
        assert len(pairs) == 16
        for given, wanted in pairs:
            assert given["arguments"] == wanted["arguments"]
            for (answer,), (other,) in zip(given["resps"], wanted["resps"], strict=True):
                if name == "write":
                    assert answer == other
                elif name == "whole":
                    assert answer == pytest.approx(other, abs=1e-3)
                else:
                    assert answer[0] == pytest.approx(other[0], abs=1e-3)
                    assert answer[1] == other[1]
        for key, value in expected["results"][name].items():
            if isinstance(value, float):
                assert mine["results"][name][key] == pytest.approx(value, rel=1e-4), key


def test_a_character_that_the_end_leaves_unfinished_is_kept(
    models: tuple[EvaluatedModel, Any, Path],
) -> None:
    from lmsmith.evaluation.harness import written

    subject, theirs, _ = models
    tokenizer = subject.tokenizer
    half = next(
        token
        for token in range(tokenizer.vocabulary_size)
        if tokenizer.token_bytes(token) == "é".encode()[:1]
    )
    (word,), (line,) = tokenizer.encode_batch([" dog", "\n"])[0][:1], tokenizer.encode("\n")
    for tokens in ([word, half], [word, half, tokenizer.end_of_turn], [half, line, word], [half]):
        whole = theirs.tok_decode(tokens, skip_special_tokens=True)
        assert "\ufffd" in whole
        assert written(tokenizer, tokens, ("\n", "x")) == whole.split("\n")[0]


def test_an_answer_that_is_begun_goes_on_where_transformers_does(
    models: tuple[EvaluatedModel, Any, Path],
) -> None:
    from lmsmith.evaluation.harness import HarnessModel

    subject, theirs, _ = models
    talk = [
        {"role": "user", "content": "the dog <|end|> ran"},
        {"role": "assistant", "content": "to a "},
    ]
    ours = HarnessModel(subject=subject)
    text = ours.apply_chat_template(talk, add_generation_prompt=False)
    assert text == theirs.apply_chat_template(talk, add_generation_prompt=False)
    # With us the user's text makes no control token.
    tokens = subject.tokenizer.encode_rendered(ours._rendered[text])
    assert (text.count("<|end|>"), tokens.count(subject.tokenizer.end_of_turn)) == (2, 1)


def test_its_requests_from_a_cache_are_read_by_the_tokens_names(
    models: tuple[EvaluatedModel, Any, Path],
) -> None:
    from lm_eval.api.instance import Instance

    from lmsmith.evaluation.harness import HarnessModel

    subject, _, _ = models
    first, second = HarnessModel(subject=subject), HarnessModel(subject=subject)
    text = first.apply_chat_template([{"role": "user", "content": "the dog ran"}])
    asked = [Instance("loglikelihood", {}, (text, "to the sea"), 0)]
    expected = first.loglikelihood(asked)
    assert second.loglikelihood(asked) != expected
    second.chat_template(True)
    assert second.loglikelihood(asked) == expected
