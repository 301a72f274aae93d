"""Losses of a student that learns from a teacher's distributions (Hinton et al. 2015).

Distributions are log-probabilities over *events* (n, e): all tokens of the vocabulary, or the
teacher's k likeliest ones and, as the last event, all other tokens together (`top_events`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lmsmith.corpus.batches import NO_TARGET
from lmsmith.device import compute_dtype, without_autocast
from lmsmith.training.losses import chunks

Divergence = Literal["forward_kl", "reverse_kl"]

StateError = Literal["relative", "mse"]


class Taught(NamedTuple):
    """The teacher's distributions at n positions.

    Attributes:
        log_probs_ne: at the objective's temperature.
        tokens_nk: the tokens of all events but the last; None where the events are the vocabulary.
    """

    log_probs_ne: Tensor
    tokens_nk: Tensor | None = None


Teach = Callable[[slice], Taught]
"""The teacher's distributions at a slice of a batch's target positions, in their order."""


@dataclass(frozen=True)
class Objective:
    """The loss of a position: α T² D(teacher, student) + (1 − α) (−log student[target]).

    D compares both distributions at the temperature T; T² keeps its gradient as large as that of
    the other term (Hinton et al. 2015, section 2).
    """

    divergence: Divergence = "forward_kl"
    temperature: float = 1.0
    teacher_weight: float = 1.0


def tempered_log_probs(logits_nv: Tensor, temperature: float) -> Tensor:
    """log softmax(z / T), in float32 at least."""
    wide = logits_nv if logits_nv.dtype == torch.float64 else logits_nv.float()
    return torch.log_softmax(wide / temperature, dim=-1)


def forward_kl(teacher_ne: Tensor, student_ne: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ p (log p − log q) in nats, (n,); p is the teacher, q the student.

    The student must give mass to all that the teacher finds likely.
    """
    return _divergence(teacher_ne, student_ne)


def reverse_kl(teacher_ne: Tensor, student_ne: Tensor) -> Tensor:
    """KL(q ‖ p) = Σ q (log q − log p) in nats, (n,) (Gu et al. 2023, MiniLLM, section 2.1).

    The student must not give mass to what the teacher finds unlikely.
    """
    return _divergence(student_ne, teacher_ne)


def _divergence(first_ne: Tensor, second_ne: Tensor) -> Tensor:
    """Σ exp(a) (a − b), where an event of no mass adds nothing."""
    mass = first_ne.exp()
    return torch.where(mass > 0, mass * (first_ne - second_ne), 0.0).sum(dim=-1)


DIVERGENCES: dict[Divergence, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": forward_kl,
    "reverse_kl": reverse_kl,
}


def top_events(log_probs_nv: Tensor, tokens_nk: Tensor) -> Tensor:
    """Log-probabilities of k tokens and of all others together, (n, k + 1).

    The divergence over these events is at most that over the vocabulary. With k = v there are no
    others, and it is the same: (n, k).
    """
    chosen = log_probs_nv.gather(1, tokens_nk)
    if tokens_nk.shape[1] == log_probs_nv.shape[1]:
        return chosen
    others = log_probs_nv.scatter(1, tokens_nk, float("-inf"))
    return torch.cat([chosen, torch.logsumexp(others, dim=1, keepdim=True)], dim=1)


def position_losses(
    logits_nv: Tensor, targets_n: Tensor, taught: Taught | None, objective: Objective
) -> tuple[Tensor, Tensor]:
    """D(teacher, student) and −log student[target] at n positions, each (n,), in nats.

    Without a teacher the first is 0.
    """
    plain_nv = tempered_log_probs(logits_nv, 1.0)
    cross_entropy_n = F.nll_loss(plain_nv, targets_n, reduction="none")
    if taught is None:
        return torch.zeros_like(cross_entropy_n), cross_entropy_n
    temperature = objective.temperature
    student = plain_nv if temperature == 1.0 else tempered_log_probs(logits_nv, temperature)
    if taught.tokens_nk is not None:
        student = top_events(student, taught.tokens_nk)
    return DIVERGENCES[objective.divergence](taught.log_probs_ne, student), cross_entropy_n


def mixed(divergence: Tensor, cross_entropy: Tensor, objective: Objective) -> Tensor:
    """α T² D + (1 − α) CE; a term of weight 0 has no gradient."""
    weight, square = objective.teacher_weight, objective.temperature**2
    return weight * square * divergence + (1.0 - weight) * cross_entropy


def state_errors(student_nd: Tensor, teacher_nd: Tensor, error: StateError) -> Tensor:
    """How far a student's hidden states are from the teacher's at n positions, (n,), float32.

    ``mse`` is mean_d (s − t)² (Xiao et al. 2023, offsite-tuning, section 3.3). ``relative`` divides
    it by mean_d t²: no position counts more because its state is long, as the first position's of
    Llama models is.
    """
    student, teacher = student_nd.float(), teacher_nd.float()
    squared = (student - teacher).square().mean(dim=-1)
    return squared / teacher.square().mean(dim=-1) if error == "relative" else squared


class _ChunkedLoss(torch.autograd.Function):
    """Sums over positions: the mixed loss, D and CE; gradients are made in the forward pass.

    Logits are made, used and dropped a chunk at a time, as in `training.losses`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_nd: Tensor,
        weight_vd: Tensor,
        targets_n: Tensor,
        teach: Teach | None,
        objective: Objective,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor, Tensor]:
        weight = weight_vd.detach().to(dtype)
        sums = torch.zeros(3, device=weight.device)
        hidden_gradient = torch.empty_like(hidden_nd)
        weight_learns = weight_vd.requires_grad
        weight_gradient_dv = torch.zeros(
            weight.T.shape if weight_learns else (0, 0), device=weight.device
        )
        for rows in chunks(hidden_nd.shape[0], weight.shape[0]):
            hidden = hidden_nd[rows].detach().to(dtype)
            with torch.enable_grad():
                logits = (hidden @ weight.T).requires_grad_(True)
                taught = teach(rows) if teach is not None else None
                parts = position_losses(logits, targets_n[rows], taught, objective)
                divergence, cross_entropy = (part.sum() for part in parts)
                loss = mixed(divergence, cross_entropy, objective)
                (gradient,) = torch.autograd.grad(loss, logits)
            sums += torch.stack([loss, divergence, cross_entropy]).detach()
            gradient = gradient.to(dtype)
            hidden_gradient[rows] = gradient @ weight
            if weight_learns:
                weight_gradient_dv += hidden.T.contiguous() @ gradient
        ctx.save_for_backward(hidden_gradient, weight_gradient_dv)
        loss, divergence, cross_entropy = sums.unbind()
        ctx.mark_non_differentiable(divergence, cross_entropy)
        return loss.clone(), divergence, cross_entropy

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        hidden_gradient, weight_gradient_dv = ctx.saved_tensors
        scale, weight_gradient = grad_outputs[0], None
        if ctx.needs_input_grad[1]:
            weight_gradient = (weight_gradient_dv * scale).T.contiguous()
        return hidden_gradient * scale, weight_gradient, None, None, None, None


def distillation_sums(
    hidden: Tensor,
    weight_vd: Tensor,
    targets: Tensor,
    teach: Teach | None,
    objective: Objective,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over the positions with a target: the mixed loss, D, and CE, in nats.

    The first alone has a gradient.

    Args:
        hidden: the student's (…, width).
        weight_vd: its unembedding (vocabulary, width).
        targets: (…) token ids or `NO_TARGET`.
        teach: gives the teacher's distributions at the positions that have a target.
    """
    dtype = compute_dtype(hidden)
    wanted = (targets.reshape(-1) != NO_TARGET).nonzero()[:, 0]
    hidden_nd = hidden.reshape(-1, hidden.shape[-1])[wanted]
    targets_n = targets.reshape(-1)[wanted]
    with without_autocast(hidden.device):
        sums: tuple[Tensor, Tensor, Tensor] = _ChunkedLoss.apply(  # type: ignore[no-untyped-call]
            hidden_nd, weight_vd, targets_n, teach, objective, dtype
        )
    return sums
