"""Stage: fine-tune a model on labelled examples, as GPT-1 did (Radford et al. 2018, section 3)."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import torch

from lmsmith.core.config import (
    NOT_A_SETTING,
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Problem,
)
from lmsmith.core.errors import UserError
from lmsmith.core.files import beside, is_there, write_jsonl
from lmsmith.corpus.labelled.task import (
    Example,
    LabelledTask,
    LocatedTask,
    TaskExamples,
    locate_task,
    read_examples,
)
from lmsmith.evaluation.classification import (
    Measured,
    baselines,
    measure_predictions,
    prediction_rows,
)
from lmsmith.evaluation.tasks.data import draw_items, search_path
from lmsmith.models.adapters import AdapterConfig, TrainedState, adapt
from lmsmith.models.batching import epoch_batches
from lmsmith.models.classifier import Classifier, ClassifierConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.encoder import Encoder
from lmsmith.models.folder import load_body, load_tokenizer, save_model
from lmsmith.runs.stage_folder import StageFolder, derive_seed
from lmsmith.statistics import bag_of_words
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.classification import (
    EncodedExample,
    accumulate_classifier_gradients,
    balanced_weights,
    encode_examples,
    predict,
    task_losses,
)
from lmsmith.training.loop import (
    FEW_STEPS,
    BestWeights,
    batch_for_steps,
    few_steps_warning,
    run_steps,
)
from lmsmith.training.machine import ResolvedMachine, choose_compiling, resolve_machine
from lmsmith.training.optimiser import Optimiser, OptimiserConfig, Schedule, learning_rate_factor


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of fine-tuning on labelled examples."""

    task: str = "sst2"
    """A shipped task (cb, cola, mrpc, rte, sst2, stsb) or a .toml file: see docs/finetuning.md."""
    data: str = ""
    """Folder of the task's files; also LMSMITH_DATA, the task file's folder, here, and ./data."""
    examples: NonNegativeInt = 0
    """Learn from so many examples, drawn by the seed; 0 takes all."""
    test_examples: NonNegativeInt = 0
    """Measure on so many test examples, drawn by a seed of their own; 0 takes all."""
    validation_examples: NonNegativeInt = 0
    """Choose the best weights on so many validation examples, drawn in the same way; 0 takes all.
    With few examples to learn from, measuring a whole file takes longer than learning."""
    validation_share: FractionBelowOne = 0.1
    """Share of the training examples that are held out where the task has no validation file."""
    epochs: PositiveInt = 3
    """Passes over the training examples."""
    batch_size: PositiveInt = 32
    """Examples of an update."""
    min_steps: NonNegativeInt = FEW_STEPS
    """With little data, batch_size is lowered, to 1 at least, for so many updates; 0 keeps it."""
    lm_weight: NonNegativeFloat = 0.5
    """λ of L3 = L2 + λ·L1: the weight of the language model's loss on the same texts."""
    head_dropout: FractionBelowOne = 0.1
    """Dropout before the output layer, in training only."""
    dropout: Annotated[float, msgspec.Meta(ge=-1, lt=1)] = -1.0
    """Dropout on the residual branches, embeddings and attention, in training only; −1 takes what
    the base was pretrained with. Dropout ruins a base that was pretrained without it: with
    0.1 SmolLM2 gave all of CoLA's held-out examples the same answer after a pass."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: every label weighs the same in the loss, however rare it is."""
    pretrained: bool = True
    """false begins with random weights of the same shape, to see what pretraining gives."""
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    """Low-rank adapters that are trained, with the head, instead of the weights."""
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(
            learning_rate=6.25e-5, weight_decay=0.01, beta2=0.999
        )
    )
    """The optimiser of all trained weights."""
    schedule: Schedule = "linear"
    """Course of the learning rate after the warm-up."""
    warmup_fraction: Fraction = 0.002
    """Share of the updates over which the learning rate rises."""
    final_lr_fraction: Fraction = 0.0
    """Factor of the peak learning rate at the last update."""
    max_length: NonNegativeInt = 0
    """Most tokens of a sequence; longer texts are cut. 0 allows the model's context."""
    validations: PositiveInt = 1
    """How often an epoch the validation examples are measured; the best weights are kept."""
    patience: NonNegativeInt = 0
    """Stop after so many measurements without a better one; 0 never stops."""
    folder: str = field(default="", metadata=NOT_A_SETTING)
    """Relative paths begin at this folder, the recipe's, where they exist."""

    def check(self) -> list[Problem]:
        """No task."""
        return [] if self.task else [Problem("task", "", "a task's name or a .toml file")]

    def external_files(self) -> list[str]:
        return [str(path) for path in self.located().files]

    def located(self) -> LocatedTask:
        """The task and its files."""
        word = beside(self.folder, self.task)
        data = beside(self.folder, self.data) if self.data else ""
        data = data if is_there(data) else self.data
        path = search_path([Path(data)] if data else [])
        return locate_task(word if is_there(word) else self.task, path)


def run(config: FinetuneConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Train on the task's examples, keep the best on validation, measure on test."""
    machine = resolve_machine(out.machine)
    located = config.located()
    task, base = located.task, inputs["base"] / "model"
    examples = held_out_examples(read_examples(located), config, out)
    tokenizer = load_tokenizer(base)
    model = make_classifier(config, task, examples, base, tokenizer, out.seed)
    if config.lm_weight and isinstance(model.decoder, Encoder):
        out.progress.note(f"{out.name}: an encoder predicts no next token, so lm_weight is 0")
        config = replace(config, lm_weight=0.0)
    train, validation, test = (
        encode_examples(model, tokenizer, part)
        for part in (examples.train, examples.validation, examples.test)
    )
    metrics = {
        "train_examples": float(len(train)),
        "validation_examples": float(len(validation)),
        "test_examples": float(len(test)),
        **count_cut(train, test, model.config.length, out),
    }
    metrics |= train_classifier(config, model, task, train, validation, machine, out)

    name = "test" if test else "validation"
    rows, shown = (test, examples.test) if test else (validation, examples.validation)
    logits = predict(model, rows, machine)
    measured = measure_predictions(task, model, rows, logits)
    metrics |= measured.named(name)
    if measured.constant:
        out.warn(
            f"it gives every {name} example the same answer: it has learnt nothing. "
            f"{calmer_start(out.name)}"
        )
    beside_it = baselines(task, examples.labels, examples.train, shown)
    metrics |= {key: value for each in beside_it for key, value in each.metrics.items()}
    if not bag_of_words.is_available():
        out.progress.say("no bag-of-words baseline: pip install scikit-learn")
    write_jsonl(out / "predictions.jsonl", prediction_rows(model, rows, shown, logits))
    save_classifier(config, model, tokenizer, measured, metrics, base, out)
    return metrics


def calmer_start(stage: str) -> str:
    """What to try where a model gives one answer to everything."""
    return (
        f"A longer warm-up ({stage}.warmup_fraction=0.06) or a smaller "
        f"{stage}.optimiser.learning_rate may help"
    )


def held_out_examples(
    found: TaskExamples, config: FinetuneConfig, out: StageFolder
) -> TaskExamples:
    """The examples, as many as wanted; without a validation file, a share is held out for it."""
    order = torch.randperm(
        len(found.train),
        generator=torch.Generator().manual_seed(derive_seed(out.seed, "examples")),
    ).tolist()
    count = 0 if found.validation else round(config.validation_share * len(order))
    validation = found.validation or [found.train[i] for i in order[:count]]
    validation = draw_items(validation, config.validation_examples or None, seed=0)
    chosen = order[count:]
    if config.examples:
        chosen = drawn_of_each_label([found.train[i] for i in chosen], chosen, config.examples)
    train = [found.train[i] for i in sorted(chosen)]
    problem = ""
    if not train:
        problem = f"nothing to learn from: {count:,} of {len(order):,} examples are held out"
    elif not validation and not found.test:
        problem = f"nothing to measure on: none of {len(order):,} examples is held out"
    if problem:
        raise UserError(
            f"{out.name}: {problem} ({out.name}.validation_share = {config.validation_share:g})",
            "add examples, name a validation or test file in the task, or hold out another share",
        )
    if not validation:
        out.warn("no example is held out, so nothing says when it overfits")
    test = draw_items(found.test, config.test_examples or None, seed=0)
    return replace(found, train=train, validation=validation, test=test)


def drawn_of_each_label(
    examples: Sequence[Example], places: Sequence[int], count: int
) -> list[int]:
    """The first ``count`` of the places, taking labels in turn: few examples have all labels."""
    ranks: Counter[int] = Counter()
    keyed = []
    for example, place in zip(examples, places, strict=True):
        keyed.append((ranks[example.label], place))
        ranks[example.label] += 1
    first = sorted(range(len(keyed)), key=lambda index: keyed[index][0])[:count]
    return [places[index] for index in first]


def make_classifier(
    config: FinetuneConfig,
    task: LabelledTask,
    examples: TaskExamples,
    base: Path,
    tokenizer: Tokenizer,
    seed: int,
) -> Classifier:
    """The base with a new head."""
    decoder = load_body(base)
    shape = decoder.config
    if not config.pretrained:
        decoder.initialise(torch.Generator().manual_seed(derive_seed(seed, "weights")))
    length = min(config.max_length or shape.context, shape.context)
    targets = torch.tensor([each.target for each in examples.train], dtype=torch.float64)
    deviation = float(targets.std()) if task.numbers and len(targets) > 1 else 1.0
    settings = ClassifierConfig(
        model=shape,
        task=task.name,
        form=task.form,
        texts=task.texts,
        answers=task.answers,
        labels=() if task.form == "multiple_choice" else examples.labels,
        length=length,
        dropout=config.head_dropout,
        mean=float(targets.mean()) if task.numbers else 0.0,
        deviation=deviation if deviation > 0 else 1.0,
    )
    if length < 8:
        raise UserError(f"max_length = {length}: no room for a text", "raise it to 8 or more")
    model = Classifier(settings, decoder)
    like = alike_tokens(tokenizer, decoder) if config.pretrained else None
    model.initialise_head(torch.Generator().manual_seed(derive_seed(seed, "head")), like)
    return model


def alike_tokens(tokenizer: Tokenizer, body: Decoder | Encoder) -> tuple[int, int, int]:
    """Tokens of a pretrained body that the start, delimiter and extract tokens begin as.

    An encoder's are [CLS], [SEP] and [SEP]. A decoder's are the token before a text, and twice a
    line's end: it has learnt to look back from one. After the token that ends a text it has learnt
    not to, and begins something else.
    """
    if isinstance(body, Encoder):
        last = tokenizer.end_of_text
        return (*tokenizer.text_start, tokenizer.start_of_text)[0], last, last
    line_end = (tokenizer.end_of_text, *tokenizer.encode("\n"))[-1]
    return (*tokenizer.text_start, tokenizer.end_of_text)[0], line_end, line_end


def count_cut(
    train: Sequence[EncodedExample], test: Sequence[EncodedExample], length: int, out: StageFolder
) -> dict[str, float]:
    """How many examples lose the end of a text; says so."""
    counts = {"train": sum(e.cut for e in train), "test": sum(e.cut for e in test)}
    if sum(counts.values()):
        out.warn(
            f"{counts['train']:,} of {len(train):,} training examples and {counts['test']:,} of "
            f"{len(test):,} test examples are longer than {length} tokens: the longer text loses "
            "its end. Raise finetune.max_length, or take a model with a longer context"
        )
    return {f"{name}_cut": float(count) for name, count in counts.items()}


def train_classifier(
    config: FinetuneConfig,
    model: Classifier,
    task: LabelledTask,
    train: Sequence[EncodedExample],
    validation: Sequence[EncodedExample],
    machine: ResolvedMachine,
    out: StageFolder,
) -> dict[str, float]:
    """Train it in place and keep the best on validation; its metrics."""
    machine.put(model)
    dropout = model.decoder.config.dropout if config.dropout < 0 else config.dropout
    model.decoder.set_dropout(dropout)
    adapt(model, config.adapter, machine.dtype, derive_seed(out.seed, "adapters"))
    optimiser = Optimiser(model, config.optimiser, [model.decoder.blocks], machine.dtype)
    weights_k = None
    if config.class_weights == "balanced" and model.config.labels:
        weights_k = balanced_weights([each.label for each in train], len(model.config.labels))
    batch = batch_for_steps(config.epochs * len(train), config.batch_size, config.min_steps)
    if batch < config.batch_size:
        out.progress.say(
            f"{out.name}: {len(train):,} examples are little data, so batch_size = {batch} is "
            f"taken, not {config.batch_size} ({out.name}.min_steps = {config.min_steps})"
        )
    lengths = [each.length for each in train]
    flops = config.epochs * sum(
        len(each.sequences) * each.length * model.config.model.training_flops_per_token(each.length)
        for each in train
    )
    if dropout == 0.0 and choose_compiling(machine, flops, out.checkpoints):
        out.progress.note(f"{out.name}: compiling the blocks; the first steps take longer")
        model.decoder.compile_blocks(lengths_vary=True)
    else:
        model.decoder.attend_explicitly()
    batches = epoch_batches(lengths, batch, config.epochs, out.seed)
    steps, per_epoch = len(batches), len(batches) // config.epochs
    warmup_steps = math.ceil(config.warmup_fraction * steps)
    out.warn(few_steps_warning(steps, f"raise {out.name}.epochs, or add examples"))
    best = BestWeights(model)
    torch.manual_seed(derive_seed(out.seed, "dropout"))

    def step(index: int) -> Mapping[str, float]:
        started = time.perf_counter()
        model.train()
        chosen = [train[i] for i in batches[index]]
        found = accumulate_classifier_gradients(model, chosen, machine, config.lm_weight, weights_k)
        factor = learning_rate_factor(
            config.schedule, index, steps, warmup_steps, config.final_lr_fraction
        )
        gradient_norm = optimiser.step(factor)
        tokens = found.pop("tokens")
        return {
            **found,
            "learning_rate": optimiser.peaks[0] * factor,
            "gradient_norm": gradient_norm,
            "tokens_per_second": tokens / (time.perf_counter() - started),
        }

    def validate(done: int) -> dict[str, float]:
        logits = predict(model, validation, machine)
        losses = torch.cat(
            [
                task_losses(model, each[None], [example])
                for each, example in zip(logits, validation, strict=True)
            ]
        )
        measured = measure_predictions(task, model, validation, logits, intervals=False)
        if measured.constant and not best.figures:
            out.progress.note(
                f"{out.name}: every held-out example gets the same answer after {done:,} updates. "
                f"{calmer_start(out.name)}"
            )
        loss = float(losses.mean())
        best.offer((measured.value, -loss), done)
        return {"validation/loss": loss, f"validation/{measured.name}": measured.value}

    headline = task.chosen_measures[0]
    done = run_steps(
        steps=steps,
        step=step,
        state={"model": TrainedState(model), "optimiser": optimiser, "best": best},
        out=out,
        description=out.name,
        shown=("loss", f"validation/{headline}", "tokens_per_second"),
        evaluate=validate if validation else None,
        evaluate_every=max(1, per_epoch // config.validations),
        stop_early=lambda: 0 < config.patience <= best.looks_since,
    )
    best.restore()
    model.decoder.set_dropout(0.0)
    found = {"steps": float(done), "batch_size": float(batch)}
    found["compiled"] = float(model.decoder.compiled)
    found["padding_share"] = padding_share(train, batches)
    if validation:
        found |= {"best_step": float(best.step), f"validation_{headline}": best.figures[0]}
    return found


def padding_share(examples: Sequence[EncodedExample], batches: Sequence[Sequence[int]]) -> float:
    """Share of the batches' tokens that is padding, were each batch computed at once."""
    groups = [[examples[index] for index in batch] for batch in batches]
    padded = sum(
        max(each.length for each in group) * sum(len(each.sequences) for each in group)
        for group in groups
    )
    own = sum(len(row) for group in groups for each in group for row in each.sequences)
    return 1.0 - own / padded


def save_classifier(
    config: FinetuneConfig,
    model: Classifier,
    tokenizer: Tokenizer,
    measured: Measured,
    metrics: Mapping[str, float],
    base: Path,
    out: StageFolder,
) -> None:
    """Write ``model/``."""
    card: dict[str, object] = {"stage": out.name, "parents": [base.parent.name]}
    card |= {"task": model.config.task, "measured": measured.name}
    card |= {"settings": asdict(config), "metrics": dict(metrics)}
    save_model(out / "model", model, tokenizer, card, config.adapter, base)
