"""Fine-tuning end to end on tiny conversations: only the assistant's words are learnt."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from preference_world import (
    conversations,
    count_recomputed,
    make_decoder,
    make_tokenizer,
    stage_folder,
    write_data,
    write_models,
)

from lmsmith.core.config import problems_in
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.files import write_jsonl
from lmsmith.corpus.batches import NO_TARGET
from lmsmith.evaluation.methods.perplexity import reply_bits_per_byte
from lmsmith.models.folder import load_decoder
from lmsmith.prompts.sft_rows import SFTBatches
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.stages.sft import SFTConfig, demonstration_windows, run
from lmsmith.tokenizers.import_tokenizer import import_tokenizer
from lmsmith.training import loop
from lmsmith.training.machine import resolve_machine
from lmsmith.training.optimiser import OptimiserConfig

TOKENIZER = make_tokenizer()
CONTEXT = 64
CONFIG = SFTConfig(
    epochs=2,
    batch_tokens=4 * CONTEXT,
    dropout=0.1,
    optimiser=OptimiserConfig(learning_rate=0.01, weight_decay=0.0),
    warmup_steps=2,
    validations=2,
    validation_conversations=4,
)
ROWS = conversations(24, 1, "a")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("run")
    data = write_data(folder / "data", demonstrations=ROWS, validation=conversations(6, 2, "b"))
    models = write_models(folder, TOKENIZER, base=make_decoder(TOKENIZER, context=CONTEXT))
    return {"data": data, **models}


@pytest.fixture(scope="module")
def made(
    inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[StageFolder, dict[str, float]]:
    out = stage_folder(tmp_path_factory.mktemp("stage") / "sft")
    return out, run(CONFIG, inputs, out)


def untimed(out: StageFolder) -> list[dict[str, float]]:
    timed = {"seconds", "tokens_per_second", "share_of_peak"}
    return [
        {name: value for name, value in row.items() if name not in timed}
        for row in read_metrics(out / "metrics.jsonl")
    ]


def test_it_learns_and_leaves_no_dropout(made: tuple[StageFolder, dict[str, float]]) -> None:
    out, metrics = made
    rows = read_metrics(out / "metrics.jsonl")
    assert metrics["steps"] == len(rows) > 6
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    looks = [row["validation/bits_per_byte"] for row in rows if "validation/bits_per_byte" in row]
    assert looks[-1] < looks[0]
    assert metrics["conversations"] == 24
    assert metrics["epochs"] == pytest.approx(2, abs=0.2)
    decoder = load_decoder(out / "model")
    tokens = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        assert torch.equal(decoder.train()(tokens), decoder.eval()(tokens))


def test_the_targets_are_exactly_what_the_assistants_say(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """All conversations, each several turns long, in the rows that the model is trained on."""
    windows, counts = demonstration_windows(
        inputs["data"] / "demonstrations.jsonl", TOKENIZER, 40, 0.4, stage_folder(tmp_path / "sft")
    )
    assert counts["conversations_longer_than_context"] > 0
    assert counts["replies_cut"] == counts["replies_without_question"] == 0
    batches = SFTBatches(windows, 40, batch_size=1, seed=0)
    learnt: list[str] = []
    for step in range(batches.rows_per_epoch):
        batch = batches.batch(step)
        for document in np.unique(batch.documents_bt[0]):
            inside = batch.documents_bt[0] == document
            targets = batch.targets_bt[0][inside]
            # A target is the token that comes next in its own conversation.
            following = np.append(batch.tokens_bt[0][inside][1:], -1)
            wanted = targets != NO_TARGET
            known = wanted & (following != -1)
            assert (targets[known] == following[known]).all()
            text = TOKENIZER.decode(targets[wanted].tolist(), special=True)
            learnt += text.split("<|end|>")[:-1]
            assert text == "" or text.endswith("<|end|>")
    said = [
        message["content"]
        for row in ROWS
        for message in row["messages"]  # type: ignore[attr-defined]
        if message["role"] == "assistant"
    ]
    assert sorted(learnt) == sorted(said)


@pytest.mark.parametrize("stop", [1, 4])
def test_a_stopped_run_ends_with_the_same_bits(
    made: tuple[StageFolder, dict[str, float]],
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
) -> None:
    out = stage_folder(tmp_path / "sft")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_requested", lambda: 2 if len(untimed(out)) == stop else None)
        with pytest.raises(Interrupted):
            run(CONFIG, inputs, out)
    torch.manual_seed(0)
    run(CONFIG, inputs, out)
    assert untimed(out) == untimed(made[0])
    name = "model/model.safetensors"
    assert (out / name).read_bytes() == (made[0] / name).read_bytes()


def test_messages_longer_than_the_context_are_counted_and_nothing_becomes_nan(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    ask = {"role": "user", "content": "what"}
    rows = [
        {"messages": [ask, {"role": "assistant", "content": "rain " * 90}], "id": "long"},
        {"messages": [ask, {"role": "assistant", "content": "tea"}], "id": "short"},
        {"messages": [ask], "id": "nothing said"},
    ]
    data = write_data(tmp_path / "data", demonstrations=rows, validation=[])
    config = replace(CONFIG, epochs=1, dropout=0.0)
    rows.append({"messages": [{"role": "user", "content": "rain " * 90}, rows[1]["messages"][1]]})  # type: ignore[index]
    data = write_data(tmp_path / "data", demonstrations=rows, validation=[])
    out = stage_folder(tmp_path / "sft")
    metrics = run(config, {**inputs, "data": data}, out)
    assert metrics["conversations"] == 4
    assert metrics["windows"] == 2
    assert metrics["replies_cut"] == 1
    assert metrics["replies_without_question"] == 1
    said = "\n".join(out.progress.said)  # type: ignore[attr-defined]
    assert "1 of 3 replies lose their end" in said
    assert "1 of 3 replies left out, because what they answer does not fit" in said
    assert "validation_bits_per_byte" not in metrics


def test_nothing_said_is_one_clear_message(inputs: dict[str, Path], tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "hello?"}], "id": "a"}]
    data = write_data(tmp_path / "data", demonstrations=rows, validation=[])
    with pytest.raises(UserError, match="no conversation in which the assistant says something"):
        run(CONFIG, {**inputs, "data": data}, stage_folder(tmp_path / "sft"))


def test_little_data_is_learnt_in_smaller_batches_and_said(
    made: tuple[StageFolder, dict[str, float]],
) -> None:
    out, metrics = made
    assert metrics["batch_tokens"] == CONTEXT < CONFIG.batch_tokens
    said = "\n".join(out.progress.said)  # type: ignore[attr-defined]
    assert "are little data, so batch_tokens = 64 is taken, not 256" in said
    assert ("steps are too few to learn much: raise sft.epochs" in said) == (metrics["steps"] < 50)


def test_the_batch_stays_where_it_is_asked_to(inputs: dict[str, Path], tmp_path: Path) -> None:
    config = replace(CONFIG, min_steps=0)
    out = stage_folder(tmp_path / "sft")
    assert run(config, inputs, out)["batch_tokens"] == CONFIG.batch_tokens
    assert not any("little data" in line for line in out.progress.said)  # type: ignore[attr-defined]


def test_the_weights_of_the_best_look_are_kept_and_a_rise_is_said(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Held-out conversations that contradict what is learnt: the more of it, the worse."""
    talk = lambda reply: [  # noqa: E731
        {"role": "user", "content": "tea"}, {"role": "assistant", "content": reply},
    ]  # fmt: skip
    rows = [{"messages": talk("yes " * 6), "id": str(n)} for n in range(8)]
    held_out = [{"messages": talk("no " * 6), "id": "b"}]
    data = write_data(tmp_path / "data", demonstrations=rows, validation=held_out)
    folders = {**inputs, "data": data}
    fast = OptimiserConfig(learning_rate=0.05, weight_decay=0.0)
    config = replace(CONFIG, epochs=12, dropout=0.0, warmup_steps=0, optimiser=fast)
    out = stage_folder(tmp_path / "sft")
    metrics = run(config, folders, out)
    looks = {
        row["step"]: row["validation/bits_per_byte"]
        for row in read_metrics(out / "metrics.jsonl")
        if "validation/bits_per_byte" in row
    }
    assert len(looks) >= 12  # once an epoch at least
    assert metrics["best_step"] == min(looks, key=looks.__getitem__) < metrics["steps"]
    assert metrics["validation_bits_per_byte"] == min(looks.values())
    again = reply_bits_per_byte(
        load_decoder(out / "model"), TOKENIZER, [talk("no " * 6)], resolve_machine(out.machine)
    )
    assert again == pytest.approx(min(looks.values()), rel=1e-5)
    said = "\n".join(out.progress.said)  # type: ignore[attr-defined]
    assert f"the weights of step {metrics['best_step']:.0f} are kept" in said


def test_the_best_weights_survive_a_stop_after_a_worse_look(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = lambda reply: [  # noqa: E731
        {"role": "user", "content": "tea"}, {"role": "assistant", "content": reply},
    ]  # fmt: skip
    rows = [{"messages": talk("yes " * 6), "id": str(n)} for n in range(8)]
    held_out = [{"messages": talk("no " * 6), "id": "b"}]
    data = write_data(tmp_path / "data", demonstrations=rows, validation=held_out)
    folders = {**inputs, "data": data}
    fast = OptimiserConfig(learning_rate=0.05, weight_decay=0.0)
    config = replace(CONFIG, epochs=6, min_steps=12, warmup_steps=0, optimiser=fast)
    whole = stage_folder(tmp_path / "whole")
    metrics = run(config, folders, whole)
    last = int(metrics["steps"])
    assert metrics["best_step"] < last - 2
    for stop in range(int(metrics["best_step"]) - 1, last):
        out = stage_folder(tmp_path / f"stopped-{stop}")
        with monkeypatch.context() as patch:
            patch.setattr(
                loop, "stop_requested", lambda o=out, n=stop: 2 if len(untimed(o)) >= n else None
            )
            with pytest.raises(Interrupted):
                run(config, folders, out)
        assert run(config, folders, out)["best_step"] == metrics["best_step"]
        name = "model/model.safetensors"
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_replies_that_do_not_end_are_said(
    made: tuple[StageFolder, dict[str, float]], inputs: dict[str, Path], tmp_path: Path
) -> None:
    config = replace(CONFIG, epochs=0.1)
    out = stage_folder(tmp_path / "sft")
    assert run(config, inputs, out)["share_ended"] < 0.25
    assert any("rarely ends a reply" in line for line in out.progress.said)  # type: ignore[attr-defined]


def test_conversations_that_the_template_refuses_are_left_out_and_counted(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
        "{% endif %}{{ m['content'] + eos_token }}{% endfor %}"
    )
    variables = {"eos_token": "<|endoftext|>"}
    tokenizer = import_tokenizer(TOKENIZER.description, variables=variables, jinja=template)
    path = tmp_path / "demonstrations.jsonl"
    write_jsonl(path, ROWS)
    out = stage_folder(tmp_path / "sft")
    windows, counts = demonstration_windows(path, tokenizer, 200, 0.4, out)
    assert (len(windows), counts["conversations_refused"]) == (19, 5)
    (said,) = out.progress.said  # type: ignore[attr-defined]
    assert "5 of 24 conversations left out" in said
    assert "no system" in said
    write_jsonl(path, ROWS[::5])
    with pytest.raises(UserError, match="nothing is left to learn from: 5 of 5 conversations"):
        demonstration_windows(path, tokenizer, 200, 0.4, out)


def test_questions_that_fill_the_context_are_refused(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    """Inputs of this kind: ../shared/faults/05-prompt-fills-context."""
    messages = [
        {"role": "user", "content": "rain " * 90},
        {"role": "assistant", "content": "tea"},
    ]
    data = write_data(tmp_path / "data", demonstrations=[{"messages": messages}], validation=[])
    with pytest.raises(UserError, match="nothing is left to learn from: 1 of 1 replies") as raised:
        run(CONFIG, {**inputs, "data": data}, stage_folder(tmp_path / "sft"))
    assert "sft.max_length" in raised.value.fix


def test_batch_tokens_must_fit_the_models_context(inputs: dict[str, Path], tmp_path: Path) -> None:
    config = replace(CONFIG, batch_tokens=100)
    with pytest.raises(UserError, match="not a multiple of a row's 64 tokens") as raised:
        run(config, inputs, stage_folder(tmp_path / "sft"))
    assert "128" in raised.value.fix


def test_settings_out_of_range_are_all_named() -> None:
    config = SFTConfig(
        epochs=0, warmup_steps=-1, overlap_fraction=1.0, dropout=-0.1, final_lr_fraction=1.5
    )
    assert [each.key for each in problems_in(config)] == [
        "epochs",
        "overlap_fraction",
        "dropout",
        "warmup_steps",
        "final_lr_fraction",
    ]
    assert problems_in(SFTConfig()) == problems_in(CONFIG) == []


def test_activations_that_are_computed_again_change_no_number(
    made: tuple[StageFolder, dict[str, float]],
    inputs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    blocks, out = count_recomputed(monkeypatch), stage_folder(tmp_path / "sft")
    run(replace(CONFIG, checkpoint_activations=True), inputs, out)
    assert blocks
    for row, plain in zip(untimed(out), untimed(made[0]), strict=True):
        assert row == pytest.approx(plain, rel=1e-5, abs=1e-6)
