"""A packed batch trains like its documents apart, at once or a few rows at a time."""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.batches import NO_TARGET, Batch
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.prompts.sft_rows import SFTBatches
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.training import language_model, machine
from lmsmith.training.language_model import (
    accumulate_gradients,
    packed_loss_sum,
    training_step,
    training_summary,
)
from lmsmith.training.machine import resolve_machine
from lmsmith.training.optimiser import Optimiser, OptimiserConfig

CONFIG = ModelConfig(layers=2, width=24, heads=3, context=20, vocabulary_size=31)
FP32 = resolve_machine(MachineConfig(precision="fp32"))
BF16 = resolve_machine(MachineConfig(precision="bf16"))


def random_decoder(seed: int = 0, spread: float = 0.3) -> Decoder:
    decoder = Decoder(CONFIG)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.normal_(float(name.endswith("norm.weight")), spread, generator=generator)
    return decoder


def pieces(count: int = 12, seed: int = 1) -> list[tuple[list[int], list[bool]]]:
    chance = np.random.default_rng(seed)
    made = []
    for length in chance.integers(2, 21, count).tolist():
        made.append(
            (
                chance.integers(0, 31, length).tolist(),
                [False, *(chance.random(length - 1) < 0.6).tolist()],
            )
        )
    return made


def packed(count: int = 12, seed: int = 1) -> tuple[Batch, list[tuple[list[int], list[bool]]]]:
    """One batch that holds every piece, and the pieces."""
    made = pieces(count, seed)
    rows = SFTBatches(made, context=20, batch_size=1, seed=0).rows_per_epoch
    return SFTBatches(made, context=20, batch_size=rows, seed=0).batch(0), made


def gradients(decoder: Decoder) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in decoder.named_parameters() if p.grad is not None}
    decoder.zero_grad()
    return found


def assert_close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = float(value.abs().max()) + 1e-5
        torch.testing.assert_close(other[name], value, rtol=0, atol=tolerance * scale, msg=name)


def test_ignored_targets_are_the_batches() -> None:
    assert NO_TARGET == NO_TARGET


def test_packed_equals_unpacked_in_loss_and_gradients() -> None:
    batch, made = packed()
    assert batch.tokens_bt.shape[0] < len(made)
    decoder = random_decoder()
    together = packed_loss_sum(decoder, batch)
    together.backward()  # type: ignore[no-untyped-call]
    packed_gradients = gradients(decoder)
    apart = torch.zeros(())
    for tokens, is_target in made:
        logits = decoder.logits(decoder(torch.tensor([tokens[:-1]])))[0]
        losses = F.cross_entropy(logits, torch.tensor(tokens[1:]), reduction="none")
        apart = apart + losses[torch.tensor(is_target[1:])].sum()
    apart.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(together, apart, rtol=1e-5, atol=1e-4)
    assert_close(gradients(decoder), packed_gradients, 1e-4)


@pytest.mark.parametrize("micro_batch_size", [1, 2, 5])
def test_a_few_rows_at_a_time_equal_the_whole_batch(micro_batch_size: int) -> None:
    batch, _ = packed(20)
    assert batch.tokens_bt.shape[0] > 5
    decoder = random_decoder()
    loss, targets = accumulate_gradients(decoder, batch, FP32)
    whole = gradients(decoder)
    parts, counted = accumulate_gradients(decoder, batch, FP32, micro_batch_size)
    assert parts == pytest.approx(loss, rel=1e-5)
    assert counted == targets == (batch.targets_bt != NO_TARGET).sum()
    assert_close(whole, gradients(decoder), 1e-4)


def test_the_loss_is_the_mean_over_targets_and_its_weight_only_in_the_gradient() -> None:
    batch, _ = packed()
    decoder = random_decoder()
    with torch.no_grad():
        expected = packed_loss_sum(decoder, batch).item() / (batch.targets_bt != NO_TARGET).sum()
    loss, _ = accumulate_gradients(decoder, batch, FP32)
    once = gradients(decoder)
    weighted, _ = accumulate_gradients(decoder, batch, FP32, weight=27.8)
    assert loss == pytest.approx(expected, rel=1e-5)
    assert weighted == pytest.approx(expected, rel=1e-5)
    assert_close({name: 27.8 * value for name, value in once.items()}, gradients(decoder), 1e-4)


def test_bf16_gradients_are_close() -> None:
    batch, _ = packed()
    decoder = random_decoder(spread=0.1)
    exact, _ = accumulate_gradients(decoder, batch, FP32)
    one = torch.cat([value.flatten() for value in gradients(decoder).values()])
    rounded, _ = accumulate_gradients(decoder, batch, BF16)
    other = torch.cat([value.flatten() for value in gradients(decoder).values()])
    assert rounded == pytest.approx(exact, rel=1e-2)
    assert float((one - other).norm() / one.norm()) < 0.03


@pytest.mark.skipif(not FP32.compiler, reason="no C++ compiler, which compiling needs")
@pytest.mark.filterwarnings("ignore")  # of what the compiler itself imports and does
def test_compiled_blocks_give_the_eager_loss_and_gradients() -> None:
    """Compiled code adds in another order and takes exp of its own: equal up to rounding."""
    batch, _ = packed()
    decoder = random_decoder()
    eager_loss, targets = accumulate_gradients(decoder, batch, FP32)
    eager = gradients(decoder)
    decoder.compile_blocks()
    compiled_loss, counted = accumulate_gradients(decoder, batch, FP32)
    assert compiled_loss == pytest.approx(eager_loss, rel=1e-5)
    assert counted == targets
    assert_close(eager, gradients(decoder), 1e-4)


def test_a_peak_that_training_passes_is_measured_again(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, _ = packed()
    measured: list[str] = []

    @functools.cache
    def measure(precision: str, device: str) -> float:
        measured.append(precision)
        return 500.0 if len(measured) > 1 else 1e-9

    monkeypatch.setattr(machine, "measure_matrix_peak", measure)
    decoder = random_decoder()
    step = training_step(
        decoder, lambda index: batch, Optimiser(decoder, OptimiserConfig()), lambda index: 0.5,
        FP32, bytes_per_token=3.0,
    )  # fmt: skip
    rows = [step(index) for index in range(3)]
    assert measured == ["fp32", "fp32"]
    assert all(0.0 < row["share_of_peak"] < 1.0 for row in rows)


def test_short_rows_count_as_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model, "matrix_peak", lambda machine: 1e3)
    made = [(tokens[:5], mask[:5]) for tokens, mask in pieces()]
    batch = SFTBatches(made, context=5, batch_size=6, seed=0).batch(0)
    decoder = random_decoder()
    step = training_step(
        decoder, lambda index: batch, Optimiser(decoder, OptimiserConfig()), lambda index: 0.5,
        FP32, bytes_per_token=3.0,
    )  # fmt: skip
    row = step(0)
    operations = 6 * (2 * CONFIG.block_products + 31 * 24) + 12 * 24 * 2 * 5 / 2
    share = row["tokens_per_second"] * operations / 1e12
    assert row["share_of_peak"] == pytest.approx(share)


def test_a_training_step_learns_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "matrix_peak", lambda machine: 1e3)
    batch, _ = packed()
    decoder = random_decoder(spread=0.1).eval()
    before = copy.deepcopy(decoder)
    optimiser = Optimiser(decoder, OptimiserConfig(learning_rate=0.01))
    step = training_step(
        decoder, lambda index: batch, optimiser, lambda index: 0.5, FP32, bytes_per_token=3.0
    )
    out = StageFolder(tmp_path, 0, MachineConfig(), QuietProgress())
    rows = [step(index) for index in range(12)]
    first, _ = accumulate_gradients(before, batch, FP32)
    assert rows[0]["loss"] == pytest.approx(first, rel=1e-5)
    assert rows[0]["bits_per_byte"] == pytest.approx(first / math.log(2) / 3.0, rel=1e-5)
    assert rows[0]["learning_rate"] == pytest.approx(0.005)
    assert rows[0]["target_tokens"] == (batch.targets_bt != NO_TARGET).sum()
    assert rows[-1]["loss"] < 0.8 * rows[0]["loss"]
    assert decoder.training  # dropout, where there is any, is on
    share = rows[3]["tokens_per_second"] * CONFIG.training_flops_per_token() / 1e12
    assert rows[3]["share_of_peak"] == pytest.approx(share)
    log = out.metrics_log()
    for number, row in enumerate(rows, start=1):
        extra = {"validation/bits_per_byte": 1.0 / number} if number % 4 == 0 else {}
        log.append(number, {**row, **extra})
    summary = training_summary(out)
    assert summary["steps"] == 12
    assert summary["final_loss"] == pytest.approx(rows[-1]["loss"])
    assert summary["trained_target_tokens"] == 12 * (batch.targets_bt != NO_TARGET).sum()
    assert summary["validation_bits_per_byte"] == pytest.approx(1 / 12)


def test_dropout_is_on_in_training_and_follows_torchs_generator() -> None:
    batch, _ = packed()
    decoder = random_decoder()
    decoder.set_dropout(0.3)
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(accumulate_gradients(decoder, batch, FP32)[0])
    assert losses[0] == losses[1] != losses[2]
