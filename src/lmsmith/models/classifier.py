"""Classifiers, scorers and choosers: a body with GPT-1's head (Radford et al. 2018, 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lmsmith.core.config import FractionBelowOne, PositiveFloat, PositiveInt
from lmsmith.corpus.labelled.task import Form
from lmsmith.device import without_autocast
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.dropout import Dropout
from lmsmith.models.encoder import Encoder

CONTROLS = 3
"""Learnt tokens: start, delimiter, extract."""


@dataclass(frozen=True)
class ClassifierConfig:
    """Settings of a fine-tuned model: its body, and the task that it does."""

    model: ModelConfig
    """The body's shape."""
    task: str = ""
    """The task's name."""
    form: Form = "classification"
    """How an example is written: see lmsmith.prompts.transformations."""
    texts: tuple[str, ...] = ("text",)
    """Names of an example's texts."""
    answers: tuple[str, ...] = ()
    """Names of an example's answers, with multiple_choice."""
    labels: tuple[str, ...] = ()
    """Names of the outputs, in their order; empty where a number is predicted or chosen among."""
    length: PositiveInt = 512
    """Most tokens of a sequence; longer texts are cut."""
    dropout: FractionBelowOne = 0.1
    """Dropout before the output layer, in training only."""
    mean: float = 0.0
    """Mean of the numbers in training, which the output 0 stands for."""
    deviation: PositiveFloat = 1.0
    """Their standard deviation, which the output is multiplied by."""
    head_bias: bool = False
    """The output layer has a bias, as transformers' BertForSequenceClassification."""

    @property
    def outputs(self) -> int:
        """Width of the output layer: a number a label, or one."""
        return len(self.labels) if self.form != "multiple_choice" and self.labels else 1

    @property
    def predicts_numbers(self) -> bool:
        return self.form != "multiple_choice" and not self.labels


class Classifier(nn.Module):
    """softmax(h W_y), where h is the body's state at the extract token, after its last norm.

    Of an encoder, which sees all tokens from everywhere, h is the pooled state of the first token,
    and the second text is its second segment (Devlin et al. 2018, section 4).
    With similarity, h is the sum over both orders; with multiple choice W_y gives each answer's
    sequence a number, and the softmax is over the answers. For a number, h W_y is the number itself
    in standard deviations from the mean. W_y has no bias, as in the paper, except in a model that
    was read from BertForSequenceClassification.
    """

    def __init__(self, config: ClassifierConfig, decoder: Decoder | Encoder | None = None) -> None:
        super().__init__()
        self.config = config
        body = Decoder if config.model.causal else Encoder
        self.decoder: Decoder | Encoder = body(config.model) if decoder is None else decoder
        self.controls = nn.Embedding(CONTROLS, config.model.width)
        self.dropout = Dropout(config.dropout)
        self.head = nn.Linear(config.model.width, config.outputs, bias=config.head_bias)

    @torch.no_grad()
    def initialise_head(
        self, generator: torch.Generator, like: tuple[int, int, int] | None = None
    ) -> None:
        """W_y normal(0, 0.02) as in the paper; control tokens as the body's are distributed.

        Args:
            like: ids of the body's tokens that the control tokens begin as, such as BERT's
                [CLS], [SEP] and [SEP], or a line's end.
        """
        self.head.weight.normal_(0.0, 0.02, generator=generator)
        table = self.decoder.token_embedding.weight.detach()
        self.controls.weight.normal_(0.0, float(table.std()), generator=generator)
        if like is not None:
            self.controls.weight.copy_(table[list(like)])

    def states(self, tokens_nt: Tensor, lengths_n: Tensor) -> tuple[Tensor, Tensor]:
        """The body's states, and those at each sequence's last token.

        Args:
            tokens_nt: sequences, padded at their end; ids from the vocabulary's size on are the
                control tokens.
            lengths_n: their lengths. What stands after is seen by none of their positions.

        Returns:
            (n, length, width), and (n, width): what W_y is multiplied with.
        """
        controls_kd = self.controls.weight
        if isinstance(self.decoder, Encoder):
            places_t = torch.arange(tokens_nt.shape[1], device=tokens_nt.device)
            is_delimiter_nt = (tokens_nt == self.config.model.vocabulary_size + 1).long()
            hidden_ntd = self.decoder(
                tokens_nt,
                mask_bts=(places_t < lengths_n[:, None])[:, None],
                segments_bt=is_delimiter_nt.cumsum(dim=1) - is_delimiter_nt,
                controls_kd=controls_kd,
            )
            return hidden_ntd, self.decoder.pooled(hidden_ntd)
        hidden_ntd = self.decoder(tokens_nt, controls_kd=controls_kd)
        rows_n = torch.arange(len(lengths_n), device=lengths_n.device)
        return hidden_ntd, hidden_ntd[rows_n, lengths_n - 1]

    def outputs(self, last_nd: Tensor, counts_b: list[int]) -> Tensor:
        """Logits of each example, float32: (b, outputs), or (b, most answers) of a choice.

        Args:
            last_nd: of all examples' sequences, one after the other.
            counts_b: each example's number of sequences. Where an example has fewer answers than
                others, its last logits are −∞.
        """
        with without_autocast(last_nd.device):
            last_nd = self.dropout(last_nd.float())
            if self.config.form != "multiple_choice":
                each = [part.sum(dim=0) for part in torch.split(last_nd, counts_b)]
                logits_bk: Tensor = self.head(torch.stack(each))
                return logits_bk
            scores = torch.split(self.head(last_nd)[:, 0], counts_b)
            return nn.utils.rnn.pad_sequence(
                list(scores), batch_first=True, padding_value=-torch.inf
            )

    def forward(self, tokens_nt: Tensor, lengths_n: Tensor, counts_b: list[int]) -> Tensor:
        """Logits: see `states` and `outputs`."""
        return self.outputs(self.states(tokens_nt, lengths_n)[1], counts_b)
