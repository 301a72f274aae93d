"""Proximal policy optimisation against a reward model: InstructGPT's third step."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

import msgspec
import torch
from torch import Tensor

from lmsmith.core.config import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Problem,
    SettingsError,
    refuse_old_keys,
)
from lmsmith.core.config import decode as decode_settings
from lmsmith.core.progress import LoggedProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.corpus.batches import Batch
from lmsmith.generation.engine import Engine, Request, SamplingSettings, answer, generate
from lmsmith.generation.vllm import VLLMModel
from lmsmith.generation.vocabulary import vocabulary_of
from lmsmith.models.adapters import AdapterConfig, TrainedState
from lmsmith.models.batching import ACTIVATION_BYTES, length_groups, memory_groups
from lmsmith.models.decoder import Decoder
from lmsmith.models.heads import ScalarModel
from lmsmith.rlhf.diagnosis import diagnose
from lmsmith.rlhf.objective import (
    Control,
    KLController,
    clipped_policy_loss,
    clipped_value_loss,
    explained_variance,
    generalised_advantages,
    masked_mean,
    masked_whiten,
    token_rewards,
    truncated_weights,
    value_mask,
)
from lmsmith.rlhf.rollout import (
    ROWS_AT_ONCE,
    RewardFunction,
    Rollout,
    model_reward,
    readable_prompts,
    response_log_probs,
    score_rollout,
    state_values,
)
from lmsmith.runs.metrics_log import read_metrics
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.language_model import accumulate_gradients
from lmsmith.training.loop import Stateful, run_steps
from lmsmith.training.machine import ResolvedMachine, prepare_process
from lmsmith.training.optimiser import Optimiser, OptimiserConfig, Schedule, learning_rate_factor
from lmsmith.training.parallel import add_up, from_leader, gather_lists, team
from lmsmith.training.sharding import divided, fetch

SHORTEST_PROMPT = 8
"""Tokens a prompt must be allowed: room for a turn's control tokens and a few words."""


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO; the defaults are InstructGPT's (Ouyang et al. 2022, appendix C.4)."""

    iterations: PositiveInt = 61
    """Rounds of rollouts and updates."""
    rollouts: PositiveInt = 512
    """Responses of an iteration (the paper's batch size)."""
    minibatch: PositiveInt = 64
    """Responses of an update; a divisor of rollouts."""
    ppo_epochs: PositiveInt = 1
    """Passes over the rollouts of an iteration."""
    kl_coefficient: NonNegativeFloat = 0.02
    """β, weight of the per-token penalty −(log π − log π_ref)."""
    kl_control: Control = "fixed"
    """Course of β: ``fixed``, towards kl_target (``adaptive``), or so that the KL stays between
    kl_low and kl_high (``band``)."""
    kl_target: PositiveFloat = 6.0
    """``adaptive``: the wanted KL, in nats per response."""
    kl_horizon: PositiveInt = 10_000
    """``adaptive``: over how many episodes β follows."""
    kl_low: float = 1.0
    """``band``: KL in nats per response below which β is lowered."""
    kl_high: float = 10.0
    """``band``: KL in nats per response above which β is raised."""
    kl_budget: NonNegativeFloat = 20.0
    """KL in nats per response above which the run is warned of; 0 never warns."""
    clip_range: PositiveFloat = 0.2
    """ε of the policy's ratio."""
    value_clip_range: PositiveFloat = 0.2
    """ε of the value's change."""
    gamma: Fraction = 1.0
    """γ, the discount of later rewards."""
    gae_lambda: Fraction = 0.95
    """λ of generalised advantage estimation."""
    ptx_coefficient: NonNegativeFloat = 27.8
    """γ_ptx, weight of the pretraining log-likelihood; 0 turns PPO-ptx off."""
    ptx_rows: PositiveInt = 8
    """Rows of pretraining text per minibatch."""
    temperature: PositiveFloat = 1.0
    """Temperature of sampling, and of every log-probability."""
    max_new_tokens: PositiveInt = 48
    """Most tokens of a response."""
    max_prompt_tokens: Annotated[int, msgspec.Meta(ge=SHORTEST_PROMPT)] = 160
    """Most tokens of a prompt; the oldest turns are dropped beyond it."""
    prompts_per_conversation: PositiveInt = 8
    """Most prompts of one conversation."""
    max_prompts: PositiveInt = 31_000
    """Most prompts that the stage takes."""
    importance_cap: NonNegativeFloat = 0.0
    """Cap of the importance weight π/μ of each token, where another engine draws the tokens (μ is
    its probability of the token); 0 weights all the same. 2 is usual."""
    missing_eos_penalty: NonNegativeFloat = 1.0
    """Taken from the score of a response that did not end by itself."""
    whiten_advantages: bool = True
    """Bring advantages to zero mean and unit variance over a batch's tokens."""
    schedule: Schedule = "constant"
    """Course of both learning rates after the warm-up."""
    value_warmup_iterations: NonNegativeInt = 0
    """Iterations at the start in which only the value model learns. Made from the reward model, it
    knows a response's end but not what its middle is worth, and a policy that learnt from its first
    estimates would unlearn to end its responses."""
    warmup_iterations: NonNegativeInt = 0
    """Iterations after those over which the policy's learning rate rises."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """Low-rank adapters that policy and value model train instead of their weights."""
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(
            learning_rate=9.65e-6, weight_decay=0.0, epsilon=1e-5
        )
    )
    """The policy's optimiser."""
    value_optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(learning_rate=9e-6, weight_decay=0.0, epsilon=1e-5)
    )
    """The value model's optimiser."""
    snapshots: NonNegativeInt = 4
    """How many times along the way the policy is kept, for the curve of reward over KL."""
    sample_rows: NonNegativeInt = 4
    """Responses of an iteration that are written to samples.jsonl."""
    checkpoint_activations: bool = False
    """Compute each block's activations again in the backward pass instead of keeping them."""

    def __new__(cls, *_: object, **given: object) -> Self:
        refuse_old_keys(cls, given)
        return super().__new__(cls)

    def check(self) -> list[Problem]:
        """Contradictions between settings."""
        wrong: list[tuple[str, str, str]] = []
        if self.value_warmup_iterations >= self.iterations > 0:
            fix = "leave the policy some iterations to learn in"
            expected = f"fewer than iterations ({self.iterations})"
            wrong.append(("value_warmup_iterations", expected, fix))
        if self.rollouts > 0 and self.minibatch > 0 and self.rollouts % self.minibatch:
            fix = "choose minibatch so that rollouts / minibatch is whole"
            wrong.append(("minibatch", f"a divisor of rollouts ({self.rollouts})", fix))
        if self.kl_control == "band" and not 0 <= self.kl_low < self.kl_high < math.inf:
            wrong.append(("kl_low", f"0 <= kl_low < kl_high ({self.kl_high})", "change it"))
        if self.kl_control != "fixed" and self.kl_coefficient == 0:
            expected = f"positive where kl_control is {self.kl_control}, which multiplies it"
            wrong.append(("kl_coefficient", expected, "start it at 0.02"))
        return [Problem(key, getattr(self, key), expected, fix) for key, expected, fix in wrong]


def _add_means(figures: dict[str, float], share: float, means: Mapping[str, Tensor]) -> None:
    """Add a group's means to a minibatch's, of which it is a ``share``."""
    for name, mean in means.items():
        figures[name] = figures.get(name, 0.0) + share * float(mean.detach())


def divided_pair(
    machine: ResolvedMachine, policy: Decoder, value_model: ScalarModel
) -> tuple[Decoder, ScalarModel]:
    """Policy and value model as they are trained: in parts, if both together are too large."""
    one, other = divided(machine, policy, value_model)
    assert isinstance(one, Decoder)
    assert isinstance(other, ScalarModel)
    return one, other


def add_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """The sums of all processes' shares of a minibatch's means."""
    return dict(zip(figures, add_up(*figures.values()), strict=True))


class SampleTable:
    """Prompts and responses kept for people to read, as part of the training state."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": list(self.rows)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])


def draw_by(
    engine: VLLMModel,
    policy: Decoder,
    prompts: Sequence[Sequence[int]],
    settings: SamplingSettings,
) -> dict[str, Any]:
    """The responses of an engine that gets the policy first, with their log-probabilities."""
    engine.bring(policy)
    requests = [Request(prompt, settings, stream=row) for row, prompt in enumerate(prompts)]
    replies = [reply for (reply,) in answer(Engine(engine), requests)]
    return {
        "responses": [reply.tokens for reply in replies],
        "log_probs": [[each.log_prob for each in reply.log_probs] for reply in replies],
    }


class PPOTrainer:
    """PPO on prompts alone: sample, score, reward, estimate advantages, update; repeat.

    Args:
        policy: trained in place; usually a copy of ``reference``.
        value_model: trained in place; usually a copy of the reward model.
        reference: π_ref of the KL penalty, the SFT model; never changed.
        reward_model: a `ScalarModel`, read at the stop token that follows every response (a cut
            one, too), or any function from prompts and responses (token ids) to rewards: one
            finite number for each response.
        prompts: token ids, each ending where the response begins, with room for a response.
        stop_token: ends a response.
        pretraining: update → packed batch of pretraining text (PPO-ptx); required where
            ``config.ptx_coefficient`` is not 0.
        seed: of prompt order, sampling and minibatches.
        machine: this machine's defaults if None.
        decode: token ids to text, for the sample tables.
        tokenizer: says which tokens may follow (`lmsmith.generation.vocabulary`); all if None.
        engine: draws the responses in place of this process, and gets every new policy.

    Raises:
        UserError: settings out of range, or a prompt that the policy cannot read.
    """

    def __init__(
        self,
        policy: Decoder,
        value_model: ScalarModel,
        reference: Decoder,
        reward_model: ScalarModel | RewardFunction,
        prompts: Sequence[Sequence[int]],
        *,
        stop_token: int,
        config: PPOConfig | None = None,
        pretraining: Callable[[int], Batch] | None = None,
        seed: int = 0,
        machine: ResolvedMachine | None = None,
        decode: Callable[[Sequence[int]], str] | None = None,
        tokenizer: Tokenizer | None = None,
        engine: VLLMModel | None = None,
    ) -> None:
        self.config = config = config if config is not None else PPOConfig()
        problems = decode_settings(PPOConfig, asdict(config), "")[1]
        context, most = policy.config.context, config.max_new_tokens
        if not problems and most >= context:
            expected = f"less than the policy's context ({context}), which holds the prompt, too"
            problems = [Problem("max_new_tokens", most, expected, f"set it to {context // 2}")]
        if problems:
            raise SettingsError(problems, "PPOConfig")
        if config.ptx_coefficient and pretraining is None:
            raise ValueError("ptx_coefficient is not 0: give pretraining batches, or set it to 0")
        # Evaluation mode throughout: with dropout on, the ratio would not begin at 1.
        self.policy = policy.eval()
        self.value_model = value_model.eval()
        self.reference = reference.eval()
        # All in the same way, so that policy and reference begin equal to the last bit.
        for decoder in (policy, reference, value_model.decoder):
            decoder.attend_explicitly()
        self.machine = machine if machine is not None else prepare_process(MachineConfig())
        self.prompts, self.stop_token = readable_prompts(prompts, stop_token, policy)
        self.reward: RewardFunction = (
            model_reward(reward_model, self.stop_token, self.machine)
            if isinstance(reward_model, ScalarModel)
            else reward_model
        )
        self.pretraining, self.seed, self.decode = pretraining, seed, decode
        self.tokenizer, self.engine = tokenizer, engine
        self.vocabulary = vocabulary_of(tokenizer, policy.config.vocabulary_size)
        if engine is not None:  # compared are probabilities of the distribution it draws from
            self.vocabulary = engine.vocabulary
        self.whole_policy, self.whole_value_model = self.policy, self.value_model
        self.policy, self.value_model = divided_pair(self.machine, policy, value_model)
        self.policy_optimiser = Optimiser(self.policy, config.optimiser)
        self.value_optimiser = Optimiser(self.value_model, config.value_optimiser)
        self.kl = KLController(
            config.kl_coefficient,
            config.kl_control,
            config.kl_target,
            config.kl_horizon,
            config.kl_low,
            config.kl_high,
        )
        self.samples = SampleTable()

    def fit(
        self,
        out: StageFolder | None = None,
        after_iteration: Callable[[int], Mapping[str, float]] | None = None,
    ) -> list[dict[str, float]]:
        """Run all iterations, resuming from checkpoints in ``out``; return the metrics of each.

        Args:
            out: gets metrics.jsonl, checkpoints and warnings; if None, it is a temporary folder,
                and warnings go to the log ``lmsmith``.
            after_iteration: called with the number of iterations done; its numbers are logged.
        """
        if out is None:
            with tempfile.TemporaryDirectory() as folder:
                quiet = StageFolder(Path(folder), self.seed, MachineConfig(), LoggedProgress())
                return self.fit(quiet, after_iteration)
        context, most = self.policy.config.context, self.config.max_new_tokens
        if short := sum(len(prompt) + most > context for prompt in self.prompts):
            out.progress.say(
                f"PPO: {short} of {len(self.prompts)} prompts leave a response less than "
                f"max_new_tokens = {most} tokens in the context of {context}: shorten them"
            )
        log = out.metrics_log()
        # No warning from before an interruption is repeated.
        before = read_metrics(log.path)
        warned = {
            name
            for done in range(1, len(before) + 1)
            for name, _ in diagnose(before[:done], self.config.kl_budget)
        }

        def step(iteration: int) -> Mapping[str, float]:
            row = self.step(iteration)
            history = [*read_metrics(log.path), row]
            ends = iteration + 1 == self.config.iterations
            for name, warning in diagnose(history, self.config.kl_budget, ends=ends):
                if name not in warned:
                    warned.add(name)
                    out.progress.say(f"PPO iteration {iteration + 1}: {warning}")
            return row

        state: dict[str, Stateful] = {
            "policy": TrainedState(self.policy),
            "value_model": TrainedState(self.value_model),
            "policy_optimiser": self.policy_optimiser,
            "value_optimiser": self.value_optimiser,
            "kl": self.kl,
            "samples": self.samples,
        }
        run_steps(
            steps=self.config.iterations,
            step=step,
            state=state,
            out=out,
            description="PPO",
            shown=("objective/scores", "objective/kl", "rollout_tokens_per_second"),
            evaluate=after_iteration,
            evaluate_every=1,
            finish=self.fetch,
        )
        return read_metrics(log.path)

    def fetch(self) -> None:
        """Give the policy and value model that were passed in the weights of their twins."""
        fetch(self.policy, self.whole_policy)
        fetch(self.value_model, self.whole_value_model)

    def step(self, iteration: int) -> dict[str, float]:
        """One iteration: sample → score → rewards → advantages → update → KL controller."""
        config, times = self.config, [time.perf_counter()]
        prompts = [self.prompts[i] for i in self._prompt_order(iteration)]
        responses, drawn_log_probs = self._sample(prompts, iteration)
        times.append(time.perf_counter())
        rollout = score_rollout(
            self.policy,
            self.reference,
            self.value_model,
            self.reward,
            prompts,
            responses,
            stop_token=self.stop_token,
            missing_eos_penalty=config.missing_eos_penalty,
            temperature=config.temperature,
            machine=self.machine,
            vocabulary=self.vocabulary,
            drawn_log_probs=drawn_log_probs,
        )
        mask_br = rollout.batch.response_mask_br
        rewards_bs, penalties_br = token_rewards(
            rollout.scores_b,
            rollout.log_probs_br,
            rollout.reference_log_probs_br,
            mask_br,
            self.kl.coefficient,
        )
        times.append(time.perf_counter())
        advantages_bs, returns_bs = generalised_advantages(
            rewards_bs, rollout.values_bs, value_mask(mask_br), config.gamma, config.gae_lambda
        )
        advantages_br = advantages_bs[:, :-1] * mask_br
        if config.whiten_advantages:
            advantages_br = masked_whiten(advantages_br, mask_br)
        metrics = self._update(iteration, rollout, advantages_br, returns_bs)
        times.append(time.perf_counter())

        sampling, scoring, updating = (end - start for start, end in pairwise(times))
        metrics |= rollout.metrics(penalties_br) | {
            "kl_coefficient": self.kl.coefficient,
            "episode": float((iteration + 1) * config.rollouts),
            "rollout_tokens_per_second": int(mask_br.sum()) / sampling,
            "seconds/rollout": sampling,
            "seconds/score": scoring,
            "seconds/update": updating,
        }
        self.kl.update(metrics["objective/kl"], config.rollouts)
        if self.engine is not None:
            metrics["rollout/weights_version"] = float(self.engine.version)
        if self.decode is not None:
            rows = rollout.sample_rows(config.sample_rows, self.decode)
            self.samples.rows += [{"step": iteration + 1, **row} for row in rows]
        return metrics

    def _prompt_order(self, iteration: int) -> list[int]:
        """The iteration's prompts: each pass over the list has a fresh order."""
        count, size = self.config.rollouts, len(self.prompts)
        orders: dict[int, list[int]] = {}
        chosen: list[int] = []
        for place in range(iteration * count, (iteration + 1) * count):
            number, position = divmod(place, size)
            if number not in orders:
                seed = derive_seed(self.seed, "order", number)
                generator = torch.Generator().manual_seed(seed)
                orders[number] = torch.randperm(size, generator=generator).tolist()
            chosen.append(orders[number][position])
        return chosen

    def _sample(
        self, prompts: list[list[int]], iteration: int
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """Responses, and their tokens' log-probabilities where another engine draws them."""
        settings = SamplingSettings(
            max_new_tokens=self.config.max_new_tokens,
            temperature=self.config.temperature,
            stop_tokens=(self.stop_token,),
            seed=derive_seed(self.seed, "rollout", iteration),
        )
        policy = fetch(self.policy, self.whole_policy)
        if (engine := self.engine) is not None:
            settings = replace(settings, log_probs=True)
            found = from_leader(lambda: draw_by(engine, policy, prompts, settings))
            return found["responses"], found["log_probs"]
        own = team().own(len(prompts))
        responses = generate(
            policy,
            [prompts[number] for number in own],
            settings,
            machine=self.machine,
            tokenizer=self.tokenizer,
            numbers=own,
        )
        return gather_lists(responses, len(prompts)), None

    def _update(
        self, iteration: int, rollout: Rollout, advantages_br: Tensor, returns_bs: Tensor
    ) -> dict[str, float]:
        """All `ppo_epochs` over one batch of rollouts, minibatch by minibatch."""
        config = self.config
        mask_bs = value_mask(rollout.batch.response_mask_br)
        learns = iteration >= config.value_warmup_iterations
        ends = config.iterations + 1  # a falling rate is 0 after the last iteration, not in it
        value_factor = learning_rate_factor(config.schedule, iteration, ends)
        policy_factor = 0.0
        if learns:
            waits = config.value_warmup_iterations
            policy_factor = learning_rate_factor(
                config.schedule,
                iteration - waits,
                ends - waits,
                config.warmup_iterations,
            )
        minibatches = config.rollouts // config.minibatch
        rows: list[dict[str, float]] = []
        for epoch in range(config.ppo_epochs):
            generator = torch.Generator().manual_seed(
                derive_seed(self.seed, "minibatch", iteration, epoch)
            )
            order = torch.randperm(config.rollouts, generator=generator)
            for number in range(minibatches):
                index = order[number * config.minibatch : (number + 1) * config.minibatch]
                update = (iteration * config.ppo_epochs + epoch) * minibatches + number
                row: dict[str, float] = {}
                if learns:
                    row |= self._update_policy(update, policy_factor, rollout, advantages_br, index)
                row |= self._update_value_model(value_factor, rollout, returns_bs, index)
                rows.append(row)
        metrics = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
        if learns:
            ratios = torch.tensor([row["val/ratio"] for row in rows])
            metrics |= {
                "val/ratio_var": float(ratios.var(unbiased=False)),
                "val/first_ratio": rows[0]["val/ratio"],
            }
        return metrics | {
            "objective/returns": float(masked_mean(returns_bs, mask_bs)),
            "objective/value_explained": explained_variance(rollout.values_bs, returns_bs, mask_bs),
            "learning_rate": config.optimiser.learning_rate * policy_factor,
        }

    def _update_policy(
        self, update: int, factor: float, rollout: Rollout, advantages_br: Tensor, index: Tensor
    ) -> dict[str, float]:
        """One update of the policy on some rows of the rollout; dropout stays off.

        Rows of like length are computed together and their gradients added, each weighted by its
        share of the tokens: that is the gradient of the minibatch's mean.
        """
        config, figures = self.config, dict[str, float]()
        tokens = int(rollout.batch.response_mask_br[index].sum())
        for group, weight in self._parts(rollout, index):
            batch = rollout.batch.rows(group)
            mask_br = batch.response_mask_br
            share = weight * int(mask_br.sum()) / tokens
            with self.machine.autocast():
                log_probs_br, entropy_br = response_log_probs(
                    self.policy, batch, config.temperature, self.vocabulary
                )
            policy = clipped_policy_loss(
                log_probs_br,
                rollout.log_probs_br[group],
                advantages_br[group],
                mask_br,
                config.clip_range,
                self._weights(rollout, group),
            )
            (share * policy.loss).backward()  # type: ignore[no-untyped-call]
            means = {
                "loss/policy_avg": policy.loss,
                "policy/approxkl_avg": policy.approximate_kl,
                "policy/clipfrac_avg": policy.clip_fraction,
                "policy/updated_entropy_avg": masked_mean(entropy_br, mask_br),
                "val/ratio": policy.ratio,
            }
            _add_means(figures, share, means)
        ptx, coefficient = 0.0, config.ptx_coefficient
        if coefficient and self.pretraining is not None:
            text = self.pretraining(update)
            ptx, _ = accumulate_gradients(self.policy, text, self.machine, weight=coefficient)
        figures = add_figures(figures)
        norm = self.policy_optimiser.step(factor)
        return {**figures, "loss/ptx_avg": ptx, "policy/gradient_norm": norm}

    def _weights(self, rollout: Rollout, group: Tensor) -> Tensor | None:
        """Importance weights of some rows' tokens; None where all weigh the same."""
        cap, drawn_br = self.config.importance_cap, rollout.drawn_log_probs_br
        if not cap or drawn_br is None:
            return None
        return truncated_weights(rollout.log_probs_br[group], drawn_br[group], cap)

    def _update_value_model(
        self, factor: float, rollout: Rollout, returns_bs: Tensor, index: Tensor
    ) -> dict[str, float]:
        """One update of the value model on some rows of the rollout, grouped in the same way."""
        states = int(value_mask(rollout.batch.response_mask_br[index]).sum())
        figures: dict[str, float] = {}
        for group, weight in self._parts(rollout, index):
            batch = rollout.batch.rows(group)
            mask_bs = value_mask(batch.response_mask_br)
            share = weight * int(mask_bs.sum()) / states
            with self.machine.autocast():
                values_bs = state_values(self.value_model, batch)
            loss, clipped = clipped_value_loss(
                values_bs,
                rollout.values_bs[group],
                returns_bs[group],
                mask_bs,
                self.config.value_clip_range,
            )
            (share * loss).backward()  # type: ignore[no-untyped-call]
            _add_means(figures, share, {"loss/value_avg": loss, "val/clipfrac_avg": clipped})
        figures = add_figures(figures)
        return {**figures, "val/gradient_norm": self.value_optimiser.step(factor)}

    def _parts(self, rollout: Rollout, index: Tensor) -> list[tuple[Tensor, float]]:
        """This process's part of `_groups`, each with its weight; all of them if it is alone.

        Rows of like length go to different processes.
        """
        longest_first = rollout.batch.lengths_b[index].argsort(descending=True, stable=True)
        count = team().count

        def of(rank: int) -> list[Tensor]:
            own = index[longest_first[rank::count]]
            return self._groups(rollout, own) if len(own) else []

        return team().parts(of)

    def _groups(self, rollout: Rollout, index: Tensor) -> list[Tensor]:
        """Rows of like length, `ROWS_AT_ONCE` of them at most, that fit the memory together."""
        lengths_b = rollout.batch.lengths_b[index]
        parts = []
        for part in length_groups(lengths_b, ROWS_AT_ONCE):
            groups = memory_groups(lengths_b[part].tolist(), self.policy.config, ACTIVATION_BYTES)
            parts += [index[part[group]] for group in groups]
        return parts
