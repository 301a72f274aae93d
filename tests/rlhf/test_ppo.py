"""The PPO trainer on a toy policy: it learns, it starts from ratio 1, it survives a kill."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lmsmith.core.config import problems_in
from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.batches import Batch
from lmsmith.models.batching import activation_bytes
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf import ppo
from lmsmith.rlhf.objective import (
    PolicyLoss,
    clipped_policy_loss,
    explained_variance,
    token_rewards,
)
from lmsmith.rlhf.ppo import PPOConfig, PPOTrainer
from lmsmith.rlhf.rollout import pad_batch, response_log_probs
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.tokenizers import Tokenizer
from lmsmith.training import loop
from lmsmith.training.language_model import accumulate_gradients
from lmsmith.training.machine import resolve_machine
from lmsmith.training.optimiser import OptimiserConfig

MACHINE = resolve_machine(MachineConfig(precision="fp32"))
STOP, LIKED, VOCABULARY = 0, 3, 10
PROMPTS = [[5], [6, 7], [8, 9, 1], [2, 4]]
FAST = OptimiserConfig(learning_rate=0.01, weight_decay=0.0, epsilon=1e-5)
CONFIG = PPOConfig(
    iterations=12,
    rollouts=64,
    minibatch=32,
    ppo_epochs=2,
    kl_coefficient=0.02,
    ptx_coefficient=0.0,
    max_new_tokens=5,
    missing_eos_penalty=0.1,
    kl_budget=0.0,
    optimiser=FAST,
    value_optimiser=FAST,
)


def share_of_liked(prompts: list[list[int]], responses: list[list[int]]) -> Tensor:
    """The rule: which part of a response is the liked token."""
    return torch.tensor([response.count(LIKED) / len(response) for response in responses])


def toy_policy(seed: int = 0, dropout: float = 0.0, spread: float = 0.02) -> Decoder:
    decoder = Decoder(ModelConfig(1, 16, 2, 12, VOCABULARY, dropout=dropout))
    generator = torch.Generator().manual_seed(seed)
    decoder.initialise(generator)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    return decoder


def toy_trainer(
    config: PPOConfig = CONFIG,
    seed: int = 0,
    reward: Any = share_of_liked,
    policy: Decoder | None = None,
    **options: Any,
) -> PPOTrainer:
    reference = policy if policy is not None else toy_policy(seed)
    value_model = ScalarModel(copy.deepcopy(reference))
    value_model.initialise_head(torch.Generator().manual_seed(seed))
    return PPOTrainer(
        copy.deepcopy(reference), value_model, reference, reward, PROMPTS,
        stop_token=STOP, config=config, seed=seed, machine=MACHINE, **options,
    )  # fmt: skip


def pretraining_batch(update: int) -> Batch:
    chance = np.random.default_rng(update)
    return Batch(
        tokens_bt=chance.integers(0, VOCABULARY, (3, 8)),
        targets_bt=chance.integers(0, VOCABULARY, (3, 8)),
        documents_bt=np.zeros((3, 8), np.int32),
        positions_bt=np.tile(np.arange(8), (3, 1)),
    )


def weights(trainer: PPOTrainer) -> bytes:
    parameters = [*trainer.policy.parameters(), *trainer.value_model.parameters()]
    return torch.nn.utils.parameters_to_vector(parameters).detach().numpy().tobytes()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_rules_reward_rises_within_seconds(seed: int) -> None:
    trainer = toy_trainer(seed=seed)
    before = copy.deepcopy(trainer.reference.state_dict())
    rows = trainer.fit()
    scores = [row["objective/scores"] for row in rows]
    assert len(rows) == CONFIG.iterations
    assert scores[0] < 0.2  # one token of ten
    assert scores[-1] > scores[0] + 0.4
    assert rows[-1]["objective/kl"] > 0.1
    assert rows[-1]["policy/entropy_avg"] < rows[0]["policy/entropy_avg"]
    for name, value in trainer.reference.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_what_goes_wrong_without_a_folder_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    trainer = toy_trainer(replace(CONFIG, iterations=1))
    trainer.prompts[0] = [5] * 9
    trainer.fit()
    assert "PPO: 1 of 4 prompts leave a response less than" in caplog.messages[0]


def test_a_strong_penalty_holds_the_policy_where_it_was() -> None:
    free, held = (
        toy_trainer(replace(CONFIG, iterations=8, kl_coefficient=beta)).fit()[-1]
        for beta in (0.0, 5.0)
    )
    assert held["objective/kl"] < 0.1 * free["objective/kl"]


def test_the_first_minibatchs_ratio_is_one_and_the_first_kl_is_zero(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for temperature in (1.0, 0.6):
        differences: list[float] = []

        def watched(
            new: Tensor, old: Tensor, *rest: Any, seen: list[float] = differences
        ) -> PolicyLoss:
            seen.append(float((new - old).detach().abs().max()))
            return clipped_policy_loss(new, old, *rest)

        monkeypatch.setattr(ppo, "clipped_policy_loss", watched)
        policy = toy_policy(spread=0.5)
        row = toy_trainer(replace(CONFIG, temperature=temperature), policy=policy).step(0)
        assert differences[0] <= 1e-5  # rows are grouped differently; float32 rounds
        assert max(differences[1:]) > 1e-4
        assert row["val/first_ratio"] == pytest.approx(1.0, abs=1e-5)
        assert row["objective/kl"] == 0.0
        assert row["objective/non_score_reward"] == 0.0
        assert row["objective/rlhf_reward"] == row["objective/scores"]


def test_dropout_is_off_though_the_models_came_in_training_mode() -> None:
    trainer = toy_trainer(policy=toy_policy(dropout=0.5).train())
    row = trainer.step(0)
    assert row["val/first_ratio"] == pytest.approx(1.0, abs=1e-6)
    assert row["objective/kl"] == 0.0


def test_updates_in_parts_that_fit_the_memory_add_up(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    read = ppo.response_log_probs

    def watched(policy: Decoder, batch: Any, *rest: Any) -> Any:
        sizes.append(len(batch.lengths_b))
        return read(policy, batch, *rest)

    rows, largest = [], []
    for most in (10**12, activation_bytes(toy_policy().config, 1, 12)):
        monkeypatch.setattr(ppo, "ACTIVATION_BYTES", most)
        trainer = toy_trainer(seed=seed)
        monkeypatch.setattr(ppo, "response_log_probs", watched)
        rows.append(trainer.step(0))
        largest.append(max(sizes))
        sizes.clear()
    assert largest[0] > 8 > 4 >= largest[1]
    for name, value in rows[0].items():
        if "second" not in name:  # whether a value is clipped may hang on its last bit
            allowed = 0.05 if "clipfrac" in name else 1e-4
            assert rows[1][name] == pytest.approx(value, abs=allowed), name


@pytest.mark.parametrize("temperature", [0.4, 1.0])
def test_responses_are_drawn_from_the_distribution_their_log_probs_are_of(
    temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the mean of −log π is the entropy, to within chance."""
    seen: list[Tensor] = []

    def watched(scores: Tensor, log_probs: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        seen.append(log_probs)
        return token_rewards(scores, log_probs, *rest)

    monkeypatch.setattr(ppo, "token_rewards", watched)
    config = replace(
        CONFIG, rollouts=1024, minibatch=1024, ppo_epochs=1, max_new_tokens=1,
        temperature=temperature,
    )  # fmt: skip
    row = toy_trainer(config, policy=toy_policy(spread=0.5)).step(0)
    surprise = -seen[0][:, 0]
    error = float(surprise.std()) / 32
    assert row["objective/entropy"] < 2.2
    assert float(surprise.mean()) == pytest.approx(row["objective/entropy"], abs=4 * error)


def test_the_pretraining_gradient_is_added_and_weighted() -> None:
    """With nothing to gain by reward, one step moves the policy along γ_ptx × its gradient."""
    still = OptimiserConfig(
        learning_rate=100.0, weight_decay=0.0, epsilon=1e3, gradient_clip=0.0
    )  # so large an epsilon makes Adam's first step 0.1 × the gradient
    config = replace(
        CONFIG, kl_coefficient=0.0, missing_eos_penalty=0.0, whiten_advantages=False,
        ptx_coefficient=0.7, rollouts=8, minibatch=8, ppo_epochs=1, optimiser=still,
    )  # fmt: skip

    def nothing(prompts: list[list[int]], responses: list[list[int]]) -> Tensor:
        return torch.zeros(len(prompts))

    trainer = toy_trainer(config, reward=nothing, pretraining=pretraining_batch)
    trainer.value_model.head.weight.data.zero_()
    expected = copy.deepcopy(trainer.policy)
    loss, _ = accumulate_gradients(expected, pretraining_batch(0), MACHINE)
    row = trainer.step(0)
    assert row["loss/ptx_avg"] == pytest.approx(loss, rel=1e-5)
    assert row["loss/policy_avg"] == pytest.approx(0.0, abs=1e-7)
    for (name, start), now in zip(
        expected.named_parameters(), trainer.policy.parameters(), strict=True
    ):
        assert start.grad is not None
        moved = (now - start).detach()
        torch.testing.assert_close(moved, -0.07 * start.grad, rtol=2e-3, atol=2e-7, msg=name)


def test_every_update_reads_pretraining_text_of_its_own() -> None:
    seen: list[int] = []

    def batches(update: int) -> Batch:
        seen.append(update)
        return pretraining_batch(update)

    config = replace(CONFIG, iterations=3, ptx_coefficient=1.0)
    toy_trainer(config, pretraining=batches).fit()
    assert seen == list(range(3 * 2 * 2))


def test_a_reward_model_is_read_at_the_stop_token_and_prompts_take_turns() -> None:
    reward_model = ScalarModel(toy_policy(4)).eval()
    reward_model.initialise_head(torch.Generator().manual_seed(5))
    trainer = toy_trainer(reward=reward_model)
    full = [1] * 10  # with its prompt, as long as the context of 12
    scores = trainer.reward([[5], [6, 7], [6, 7]], [[1, 2, STOP], [3], full])
    with torch.no_grad():
        expected = [
            float(reward_model(torch.tensor([tokens]))[0, -1])
            for tokens in ([5, 1, 2, STOP], [6, 7, 3, STOP], [6, 7, *full[:9], STOP])
        ]
    assert scores.tolist() == pytest.approx(expected, rel=1e-4)
    order = [index for iteration in range(3) for index in trainer._prompt_order(iteration)]
    passes = [order[start : start + 4] for start in range(0, len(order), 4)]
    assert all(sorted(each) == [0, 1, 2, 3] for each in passes)
    assert len({tuple(each) for each in passes}) > 3


def test_the_value_model_learns_first() -> None:
    trainer = toy_trainer(replace(CONFIG, iterations=3, value_warmup_iterations=2))
    rows, weights = [], []
    for iteration in range(3):
        weights.append(
            (
                copy.deepcopy(trainer.policy.state_dict()),
                copy.deepcopy(trainer.value_model.state_dict()),
            )
        )
        rows.append(trainer.step(iteration))
    weights.append((trainer.policy.state_dict(), trainer.value_model.state_dict()))
    for number, (before, after) in enumerate(itertools.pairwise(weights)):
        policy_moved, value_moved = (
            any(not torch.equal(one[name], other[name]) for name in one)
            for one, other in zip(before, after, strict=True)
        )
        assert value_moved
        assert policy_moved == (number == 2)
        assert ("policy/approxkl_avg" in rows[number]) == (number == 2)
    assert rows[1]["objective/kl"] == 0.0
    assert rows[1]["learning_rate"] == 0.0
    assert rows[2]["val/first_ratio"] == pytest.approx(1.0, abs=1e-5)


def test_a_warning_is_not_said_again_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []

    class Listener(QuietProgress):
        def say(self, text: str) -> None:
            said.append(text)

    monkeypatch.setattr(ppo, "diagnose", lambda history, budget, ends=False: [("x", "odd")])
    out = StageFolder(tmp_path, 0, MachineConfig(), Listener())
    config = replace(CONFIG, iterations=4)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_requested", lambda: 2 if len(untimed(out)) == 2 else None)
        with pytest.raises(Interrupted):
            toy_trainer(config).fit(out)
    toy_trainer(config).fit(out)
    assert said == ["PPO iteration 1: odd"]


@pytest.mark.parametrize("iterations", [1, 2])
def test_the_last_iteration_learns_too(iterations: int, tmp_path: Path) -> None:
    config = replace(CONFIG, iterations=iterations, schedule="linear")
    out = StageFolder(tmp_path, 0, MachineConfig(), QuietProgress())
    toy_trainer(config).fit(out)
    peak = config.optimiser.learning_rate
    rates = [row["learning_rate"] / peak for row in read_metrics(out / "metrics.jsonl")]
    assert rates == pytest.approx([1.0, 0.5][:iterations])


RESUMED = replace(
    CONFIG, iterations=5, rollouts=16, minibatch=8, kl_control="adaptive", kl_target=0.05,
    kl_horizon=64, ptx_coefficient=0.2, sample_rows=2, schedule="linear", warmup_iterations=2,
    value_warmup_iterations=1,
)  # fmt: skip


def resumable(folder: Path, reward: Any = share_of_liked) -> tuple[PPOTrainer, StageFolder]:
    trainer = toy_trainer(
        RESUMED, reward=reward, pretraining=pretraining_batch,
        decode=lambda tokens: " ".join(map(str, tokens)),
    )  # fmt: skip
    return trainer, StageFolder(folder, 0, MachineConfig(), QuietProgress())


def untimed(out: StageFolder) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if "second" not in name}
        for row in read_metrics(out / "metrics.jsonl")
    ]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[PPOTrainer, StageFolder]:
    trainer, out = resumable(tmp_path_factory.mktemp("unbroken"))
    trainer.fit(out)
    return trainer, out


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_stopped_and_continued_is_unbroken(
    unbroken: tuple[PPOTrainer, StageFolder],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: int,
) -> None:
    first, out = resumable(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_requested", lambda: 15 if len(untimed(out)) == stop else None)
        with pytest.raises(Interrupted):
            first.fit(out)
    second, out = resumable(tmp_path)
    second.fit(out)
    assert weights(second) == weights(unbroken[0])
    assert untimed(out) == untimed(unbroken[1])
    assert second.samples.rows == unbroken[0].samples.rows
    assert second.kl.coefficient == unbroken[0].kl.coefficient != RESUMED.kl_coefficient


def test_killed_in_the_middle_and_continued_is_unbroken(
    unbroken: tuple[PPOTrainer, StageFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def failing(prompts: list[list[int]], responses: list[list[int]]) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return share_of_liked(prompts, responses)

    first, out = resumable(tmp_path, failing)
    with monkeypatch.context() as patch:
        ticks = iter(range(10_000))
        patch.setattr(loop.time, "monotonic", lambda: 100.0 * next(ticks))
        with pytest.raises(KeyboardInterrupt):
            first.fit(out)
    second, out = resumable(tmp_path)
    second.fit(out)
    assert weights(second) == weights(unbroken[0])
    assert untimed(out) == untimed(unbroken[1])
    assert second.samples.rows == unbroken[0].samples.rows


def test_samples_are_kept_as_text(unbroken: tuple[PPOTrainer, StageFolder]) -> None:
    rows = unbroken[0].samples.rows
    assert [row["step"] for row in rows] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    prompts = {" ".join(map(str, prompt)) for prompt in PROMPTS}
    for row in rows:
        assert row["prompt"] in prompts
        response = [int(token) for token in row["response"].split()]
        assert row["ended"] == (response[-1] == STOP)
        penalty = 0.0 if row["ended"] else RESUMED.missing_eos_penalty
        expected = share_of_liked([], [response]).item() - penalty
        assert row["score"] == pytest.approx(expected, abs=1e-6)


def test_metrics_have_their_established_names(
    unbroken: tuple[PPOTrainer, StageFolder],
) -> None:
    row = read_metrics(unbroken[1] / "metrics.jsonl")[2]
    names = """objective/kl objective/entropy objective/scores objective/rlhf_reward
        objective/non_score_reward policy/approxkl_avg policy/clipfrac_avg policy/entropy_avg
        loss/policy_avg loss/value_avg loss/ptx_avg val/ratio val/ratio_var val/clipfrac_avg
        val/num_eos_tokens objective/response_tokens kl_coefficient learning_rate
        rollout_tokens_per_second seconds/rollout seconds/score seconds/update"""
    assert set(names.split()) <= set(row)
    assert row["objective/rlhf_reward"] == pytest.approx(
        row["objective/scores"] + row["objective/non_score_reward"]
    )
    assert row["objective/non_score_reward"] == pytest.approx(
        -row["kl_coefficient"] * row["objective/kl"], rel=1e-4, abs=1e-7
    )
    assert row["episode"] == 48


def test_a_warning_is_said_once(tmp_path: Path) -> None:
    config = replace(CONFIG, iterations=8, rollouts=16, minibatch=8, kl_budget=1e-4)
    out = StageFolder(tmp_path, 0, MachineConfig(), QuietProgress())
    toy_trainer(config).fit(out)
    said = out.progress.said  # type: ignore[attr-defined]
    assert len([text for text in said if "over its budget" in text]) == 1


def test_after_each_iteration_its_numbers_are_logged() -> None:
    config = replace(CONFIG, iterations=2, rollouts=8, minibatch=8)
    rows = toy_trainer(config).fit(after_iteration=lambda done: {"judge/scores": float(done)})
    assert [row["judge/scores"] for row in rows] == [1.0, 2.0]


def test_pretraining_text_is_needed_where_it_is_learnt_from() -> None:
    policy = toy_policy()
    with pytest.raises(ValueError, match="pretraining batches"):
        PPOTrainer(
            policy, ScalarModel(policy), policy, share_of_liked, PROMPTS,
            stop_token=STOP, config=replace(CONFIG, ptx_coefficient=1.0), machine=MACHINE,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        (lambda n: torch.zeros(1), r"shape \(1,\); expected 64 finite numbers, shape \(64,\)"),
        (lambda n: torch.zeros(n, 1), r"shape \(64, 1\); .*\n.*squeeze"),
        (lambda n: torch.tensor(0.0), r"shape \(\)"),
        (lambda n: [[0.0], [1.0, 2.0]], "not a list of numbers"),
        (lambda n: ["good"] * n, "not a list of numbers"),
        (lambda n: [10**400] * n, "not a list of numbers"),
        (lambda n: None, "NoneType"),
        (lambda n: torch.zeros(n, dtype=torch.complex64), "complex"),
        (lambda n: [math.nan, *[0.0] * (n - 1)], "1 of 64 rewards .* NaN .* of response 0"),
        (lambda n: np.full(n, np.inf), "64 of 64 rewards .* infinite"),
        (lambda n: torch.full((n,), -1e30), "too large for float32"),
        (lambda n: np.full(n, 1e300), r"too large for float32: the first is 1e\+300"),
    ],
)
def test_rewards_that_are_no_numbers_one_for_each_are_refused(rewards: Any, words: str) -> None:
    trainer = toy_trainer(reward=lambda prompts, responses: rewards(len(responses)))
    with pytest.raises(UserError, match=words) as raised:
        trainer.fit()
    assert "learning rate" not in str(raised.value)


@pytest.mark.parametrize(
    "kind",
    [
        list,
        np.array,
        torch.tensor,
        lambda x: torch.tensor(x).int(),
        lambda x: np.array(x[::-1])[::-1],
        lambda x: np.array(x, dtype=object),
        lambda x: np.frombuffer(np.array(x, dtype=np.float32).tobytes(), dtype=np.float32),
    ],
)
def test_rewards_may_be_any_numbers(kind: Any) -> None:
    config = replace(CONFIG, iterations=1)
    expected = toy_trainer(config, reward=lambda _, r: torch.tensor([len(x) * 1.0 for x in r]))
    found = toy_trainer(config, reward=lambda _, r: kind([len(x) for x in r]))
    names = ("objective/scores", "loss/policy_avg")
    wanted = [expected.fit()[0][name] for name in names]
    assert [found.fit()[0][name] for name in names] == wanted


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], r"prompts\[1\] has no tokens"),
        ([5] * 12, r"prompts\[1\] has 12 tokens, which leaves no room"),
        ([5, 99], r"prompts\[1\] has token ids outside 0 to 9"),
        ([-1], r"outside 0 to 9"),
        ([5.5], r"prompts\[1\] is not a list of token ids"),
        (["5"], r"prompts\[1\] is not a list of token ids"),
        ("hello", r"prompts\[1\] is not a list of token ids"),
        (None, r"prompts\[1\] is not a list of token ids"),
        ([[5]], r"prompts\[1\] is not a list of token ids"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused(prompt: Any, words: str) -> None:
    policy = toy_policy()
    with pytest.raises(UserError, match=words):
        PPOTrainer(
            policy, ScalarModel(policy), policy, share_of_liked, [[5], prompt],
            stop_token=STOP, config=CONFIG, machine=MACHINE,
        )  # fmt: skip


@pytest.mark.parametrize(
    "prompts", [((5, 6), (7, 8)), np.array([[5, 6], [7, 8]]), iter([[5], [6]])]
)
def test_prompts_may_be_anything_that_holds_token_ids(prompts: Any) -> None:
    trainer = PPOTrainer(
        toy_policy(), ScalarModel(toy_policy()), toy_policy(), share_of_liked, prompts,
        stop_token=STOP, config=CONFIG, machine=MACHINE,
    )  # fmt: skip
    assert len(trainer.prompts) == 2
    assert all(type(token) is int for prompt in trainer.prompts for token in prompt)


@pytest.mark.parametrize(("prompts", "stop"), [([], STOP), ([[5]], None), ([[5]], "1")])
def test_no_prompt_and_no_stop_token_are_refused(prompts: Any, stop: Any) -> None:
    policy = toy_policy()
    with pytest.raises(UserError, match=r"no prompt|stop_token = (None|'1')"):
        PPOTrainer(
            policy, ScalarModel(policy), policy, share_of_liked, prompts,
            stop_token=stop, config=CONFIG, machine=MACHINE,
        )  # fmt: skip


@pytest.mark.parametrize(
    "settings",
    [
        {"rollouts": 32, "minibatch": 64},
        {"rollouts": 0},
        {"iterations": 0},
        {"clip_range": math.nan},
        {"temperature": math.inf},
        {"kl_coefficient": math.nan},
        {"kl_control": "adaptive", "kl_target": 0.0},
        {"kl_control": "band", "kl_low": math.nan},
        {"kl_control": "never"},
        {"iterations": 2.5},
        {"sample_rows": -1},
        {"max_new_tokens": 12},
        {"optimiser": replace(FAST, learning_rate=-1.0)},
    ],
)
def test_settings_out_of_range_are_refused_from_python_too(settings: dict[str, Any]) -> None:
    name = "minibatch" if "minibatch" in settings else next(reversed(settings))
    with pytest.raises(UserError, match=f"PPOConfig: .*\n  {name}"):
        toy_trainer(replace(CONFIG, **settings))


def test_contradictions_are_all_named() -> None:
    config = replace(
        CONFIG, iterations=0, minibatch=48, gamma=1.5, kl_coefficient=0.0, kl_control="adaptive"
    )
    assert [each.key for each in problems_in(config)] == [
        "iterations",
        "gamma",
        "minibatch",
        "kl_coefficient",
    ]
    band = replace(CONFIG, kl_control="band", kl_low=5.0, kl_high=5.0)
    assert [each.key for each in problems_in(band)] == ["kl_low"]
    nothing_to_double = replace(CONFIG, kl_control="band", kl_coefficient=0.0)
    assert [each.key for each in problems_in(nothing_to_double)] == ["kl_coefficient"]
    assert problems_in(PPOConfig()) == problems_in(CONFIG) == []


def test_the_papers_settings_are_the_defaults() -> None:
    config = PPOConfig()
    assert (config.rollouts, config.minibatch, config.ppo_epochs) == (512, 64, 1)
    assert (config.kl_coefficient, config.clip_range, config.value_clip_range) == (0.02, 0.2, 0.2)
    assert (config.gamma, config.gae_lambda, config.ptx_coefficient) == (1.0, 0.95, 27.8)


def test_explained_variance() -> None:
    returns = torch.tensor([[1.0, 2.0], [4.0, 9.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(torch.zeros(2, 2), returns, mask) == pytest.approx(0.0)
    assert explained_variance(returns, torch.ones(2, 2), mask) == 0.0


def test_rollout_and_update_are_of_the_distribution_renormalised_over_whole_characters() -> None:
    tokenizer = Tokenizer.train(["你好 hello"] * 4, 265)
    size = tokenizer.vocabulary_size + 3  # three ids without a token
    policy = Decoder(ModelConfig(1, 16, 2, 24, size))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    value_model = ScalarModel(copy.deepcopy(policy))
    value_model.initialise_head(generator)
    prompts = [tokenizer.encode(text) for text in ("你", "a", "你好")]
    prompts.append(prompts[0][:2])  # ends within a character
    trainer = PPOTrainer(
        copy.deepcopy(policy), value_model, policy, share_of_liked, prompts,
        stop_token=tokenizer.end_of_turn, machine=MACHINE, tokenizer=tokenizer,
        config=replace(CONFIG, rollouts=8, minibatch=4, max_new_tokens=8, temperature=1.3),
    )  # fmt: skip
    row = trainer.step(0)
    assert row["val/first_ratio"] == pytest.approx(1.0, abs=1e-5)
    assert row["objective/kl"] == 0.0
    batch = pad_batch(prompts, trainer._sample(prompts, 0)[0])
    with torch.no_grad():
        log_probs_br, entropy_br = response_log_probs(
            trainer.reference, batch, 1.3, trainer.vocabulary
        )
    vocabulary, table = trainer.vocabulary, tokenizer.utf8
    for row_number, prompt in enumerate(prompts):
        response = batch.response_br[row_number][batch.response_mask_br[row_number]].tolist()
        text = list(prompt)
        for place, token in enumerate(response):
            with torch.no_grad():
                logits_v = policy.logits(policy(torch.tensor([text]))[0, -1])
            allowed_v = torch.zeros(size, dtype=torch.bool)
            allowed_v[: tokenizer.vocabulary_size] = torch.from_numpy(
                table.allowed_sv[vocabulary.state_after(text)]
            )
            exact_v = (logits_v[allowed_v] / 1.3).log_softmax(-1)
            at = int(allowed_v[:token].sum())
            assert bool(allowed_v[token])
            torch.testing.assert_close(
                log_probs_br[row_number, place], exact_v[at], rtol=1e-4, atol=1e-4
            )
            entropy = -(exact_v.exp() * exact_v).sum()
            torch.testing.assert_close(entropy_br[row_number, place], entropy, rtol=1e-3, atol=1e-4)
            text.append(token)


def test_an_old_keyword_is_refused_with_its_new_name() -> None:
    old: dict[str, Any] = {"maximum_response": 6, "trace": 0.9}
    with pytest.raises(UserError, match=r"write max_new_tokens\n.*write gae_lambda"):
        PPOConfig(**old)
    assert copy.deepcopy(CONFIG) == CONFIG
