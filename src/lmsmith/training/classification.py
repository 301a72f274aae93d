"""Fine-tuning's loss, L3 = L2 + λ·L1 (Radford et al. 2018, section 3.2), and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.corpus.batches import NO_TARGET
from lmsmith.corpus.labelled.task import Example
from lmsmith.device import HOST, device_of, moved
from lmsmith.models.batching import length_batches, memory_groups
from lmsmith.models.classifier import Classifier
from lmsmith.models.decoder import Decoder
from lmsmith.prompts.transformations import Controls, transform
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.losses import linear_cross_entropy_sum
from lmsmith.training.machine import ResolvedMachine

TOKENS_AT_ONCE = 8_192
"""Most tokens of sequences that are predicted together."""


@dataclass(frozen=True, slots=True)
class EncodedExample:
    """An example as sequences of tokens, with what is predicted."""

    sequences: list[list[int]]
    label: int
    target: float
    cut: bool

    @property
    def length(self) -> int:
        """Tokens of its longest sequence."""
        return max(map(len, self.sequences))


def encode_examples(
    model: Classifier, tokenizer: Tokenizer, examples: Sequence[Example]
) -> list[EncodedExample]:
    """Examples as the sequences of the model's form; long texts are cut (``cut``)."""
    config = model.config
    controls = Controls.after(config.model.vocabulary_size)
    pieces = [text for example in examples for text in (*example.texts, *example.answers)]
    tokens = iter(tokenizer.encode_batch(pieces))
    found = []
    for example in examples:
        texts = [next(tokens) for _ in example.texts]
        answers = [next(tokens) for _ in example.answers]
        sequences, cut = transform(config.form, texts, answers, controls, config.length)
        found.append(EncodedExample(sequences, example.label, example.target, cut))
    return found


@dataclass(frozen=True)
class PaddedExamples:
    """Sequences of some examples, padded at their end.

    Attributes:
        tokens_nt, lengths_n: all sequences, and their lengths.
        counts_b: each example's number of sequences.
        targets_nt: the next token where that is a token of text, else `NO_TARGET`.
    """

    tokens_nt: Tensor
    lengths_n: Tensor
    counts_b: list[int]
    targets_nt: Tensor


def pad_examples(
    examples: Sequence[EncodedExample], vocabulary_size: int, device: torch.device = HOST
) -> PaddedExamples:
    """One tensor of all sequences. No position of a text sees the padding after it."""
    sequences = [sequence for example in examples for sequence in example.sequences]
    lengths_n = torch.tensor([len(sequence) for sequence in sequences])
    tokens_nt = torch.zeros(len(sequences), int(lengths_n.max()), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        tokens_nt[row, : len(sequence)] = torch.tensor(sequence)
    targets_nt = torch.full_like(tokens_nt, NO_TARGET)
    targets_nt[:, :-1] = tokens_nt[:, 1:]
    inside_nt = torch.arange(tokens_nt.shape[1])[None] < lengths_n[:, None] - 1
    targets_nt[~inside_nt | (targets_nt >= vocabulary_size)] = NO_TARGET
    counts_b = [len(example.sequences) for example in examples]
    tensors = (moved(each, device) for each in (tokens_nt, lengths_n, targets_nt))
    tokens_nt, lengths_n, targets_nt = tensors
    return PaddedExamples(tokens_nt, lengths_n, counts_b, targets_nt)


def squared_error(predicted_b: Tensor, target_b: Tensor) -> Tensor:
    """(predicted − target)² of each example.

    Raises:
        ValueError: the two are not lists of equal length. (b, 1) against (b,) would compare every
            prediction with every target, and teach the mean.
    """
    if predicted_b.ndim != 1 or predicted_b.shape != target_b.shape:
        raise ValueError(f"(b,) and (b,) expected, got {predicted_b.shape} and {target_b.shape}")
    return (predicted_b - target_b) ** 2


def task_losses(
    model: Classifier,
    logits_bk: Tensor,
    examples: Sequence[EncodedExample],
    class_weights_k: Tensor | None = None,
) -> Tensor:
    """L2 of each example, (b,): cross entropy in nats, times its label's weight; for a number the
    squared error in standard deviations."""
    config = model.config
    if config.predicts_numbers:
        # in double precision first: float32 has not the digits of a number far from 0
        standard = [(each.target - config.mean) / config.deviation for each in examples]
        targets_b = torch.tensor(standard, dtype=torch.float32, device=logits_bk.device)
        return squared_error(logits_bk[:, 0], targets_b)
    labels_b = torch.tensor([each.label for each in examples], device=logits_bk.device)
    if class_weights_k is not None:
        class_weights_k = class_weights_k.to(logits_bk.device)
    return F.cross_entropy(logits_bk, labels_b, weight=class_weights_k, reduction="none")


def balanced_weights(labels: Sequence[int], classes: int) -> Tensor:
    """n / (k · nₖ), (k,): every label weighs the same in the loss; the mean over the data is 1."""
    counts_k = torch.bincount(torch.tensor(labels), minlength=classes)
    weights_k: Tensor = len(labels) / (classes * counts_k.clamp(min=1))
    return weights_k.float()


def accumulate_classifier_gradients(
    model: Classifier,
    examples: Sequence[EncodedExample],
    machine: ResolvedMachine,
    lm_weight: float = 0.0,
    class_weights_k: Tensor | None = None,
) -> dict[str, float]:
    """Add the gradient of L2 + λ·L1 over a batch to the parameters'.

    L2 is the mean over the examples. L1 is the language model's loss on the same sequences, the
    mean over their tokens of text: control tokens are not predicted, for the unembedding has none.

    Args:
        lm_weight: λ; 0 leaves L1 out.

    Returns:
        ``loss`` (L2), ``lm_loss`` (L1 in nats a token, with λ above 0), ``tokens``.
    """
    vocabulary = model.config.model.vocabulary_size
    lengths = [each.length * len(each.sequences) for each in examples]
    groups = memory_groups(lengths, model.config.model)
    device = device_of(model)
    padded = [pad_examples([examples[i] for i in group], vocabulary, device) for group in groups]
    targets = max(1, sum(int((each.targets_nt != NO_TARGET).sum()) for each in padded))
    task_total, lm_total = 0.0, 0.0
    for group, batch in zip(groups, padded, strict=True):
        with machine.autocast():
            hidden_ntd, last_nd = model.states(batch.tokens_nt, batch.lengths_n)
            logits_bk = model.outputs(last_nd, batch.counts_b)
            chosen = [examples[i] for i in group]
            task = task_losses(model, logits_bk, chosen, class_weights_k).sum() / len(examples)
            loss = task
            if lm_weight:
                assert isinstance(model.decoder, Decoder)
                lm = linear_cross_entropy_sum(
                    hidden_ntd, model.decoder.unembedding_weight, batch.targets_nt
                )
                loss = task + lm_weight * lm / targets
                lm_total += lm.item() / targets
        loss.backward()  # type: ignore[no-untyped-call]
        task_total += task.item()
    found = {"loss": task_total, "tokens": float(sum(int(b.lengths_n.sum()) for b in padded))}
    return found | ({"lm_loss": lm_total} if lm_weight else {})


def predict(
    model: Classifier, examples: Sequence[EncodedExample], machine: ResolvedMachine
) -> list[Tensor]:
    """Logits of each example, float32: (outputs,), or (answers,) of a choice."""
    found: list[Tensor] = [torch.empty(0)] * len(examples)
    vocabulary = model.config.model.vocabulary_size
    lengths = [each.length * len(each.sequences) for each in examples]
    with machine.reading(model):
        for group in length_batches(lengths, TOKENS_AT_ONCE):
            chosen = [examples[i] for i in group]
            batch = pad_examples(chosen, vocabulary, device_of(model))
            logits_bk = model(batch.tokens_nt, batch.lengths_n, batch.counts_b).to(HOST)
            for place, example, logits_k in zip(group, chosen, logits_bk, strict=True):
                is_choice = model.config.form == "multiple_choice"
                found[place] = logits_k[: len(example.sequences)] if is_choice else logits_k
    return found


def predicted_number(model: Classifier, logits_k: Tensor) -> float:
    """The number that an output stands for."""
    return model.config.mean + model.config.deviation * float(logits_k[0])
