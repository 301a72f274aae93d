"""A model under evaluation: ready for reading, with its tokenizer and what tells it apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmsmith.catalogue.reading import ReadModel, read_model
from lmsmith.catalogue.remote import RemoteModel, find_remote, is_address
from lmsmith.catalogue.resolve import Sampling, advised_sampling, weights_sum
from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.prompts import encode_prompt
from lmsmith.prompts.chat import begun
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import ResolvedMachine


@dataclass(frozen=True)
class Continuation:
    """A continuation after its context, as tokens.

    Attributes:
        tokens: both, one after the other; the context is never empty.
        scored: how many of the last ones are the continuation.
        truncated: tokens of the context that did not fit, cut from its beginning.
    """

    tokens: tuple[int, ...]
    scored: int
    truncated: int = 0

    @property
    def context(self) -> tuple[int, ...]:
        return self.tokens[: len(self.tokens) - self.scored]


@dataclass(frozen=True)
class EvaluatedModel:
    """The model.

    Attributes:
        name: to call it by.
        fingerprint: of its weights' file and the precision.
        parameters: of the decoder.
        precision: of the matrix products, ``fp32`` or ``bf16``.
        start: tokens before every text.
        chat: whether a context is asked as a user's message, by the chat template.
        machine: that it runs on; other models that it needs run there too.
        sampling: how its makers would draw from it, and ``lmsmith chat`` does.
    """

    name: str
    model: InferenceDecoder | RemoteModel
    tokenizer: Tokenizer
    fingerprint: str
    parameters: int
    precision: str
    start: tuple[int, ...]
    chat: bool = False
    machine: ResolvedMachine | None = None
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def context(self) -> int:
        """Most tokens it reads at once."""
        if isinstance(self.model, RemoteModel):
            return self.model.context
        return self.model.config.context

    @property
    def is_remote(self) -> bool:
        """Whether another server has the model, which writes texts and gives no probabilities."""
        return isinstance(self.model, RemoteModel)

    @property
    def decoder(self) -> InferenceDecoder:
        """The model, for log-probabilities.

        Raises:
            UserError: another server has it.
        """
        if isinstance(self.model, RemoteModel):
            raise UserError(
                f"{self.name}: this needs log-probabilities, which a model behind another server "
                "does not give",
                "choose a task whose answers are written, or a model of this machine",
            )
        return self.model

    def encode_contexts(self, contexts: Sequence[str]) -> list[list[int]]:
        """Tokens of contexts to be continued; an empty one is the start of text alone."""
        if self.chat:
            return [self._chat_tokens(context) for context in contexts]
        encoded = self.tokenizer.encode_batch(list(contexts))
        return [begun(self.tokenizer, tokens, self.start) for tokens in encoded]

    def encode_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
        """Tokens of (context, continuation): encoded as one text, parted where the context ends.

        Spaces at the context's end are encoded with the continuation, as words are. A pair of more
        than the context holds loses its beginning.
        """
        if self.chat:
            contexts = [self._chat_tokens(context) for context, _ in pairs]
            continuations = self.tokenizer.encode_batch([text.lstrip() for _, text in pairs])
            return [
                self.continuation([*context, *tokens], len(tokens))
                for context, tokens in zip(contexts, continuations, strict=True)
            ]
        stripped = [context.rstrip() for context, _ in pairs]
        whole = self.tokenizer.encode_batch([context + text for context, text in pairs])
        different = list(dict.fromkeys(stripped))  # an item's choices have one
        before = dict(zip(different, self.tokenizer.encode_batch(different), strict=True))
        found = []
        for tokens, context in zip(whole, stripped, strict=True):
            known = before[context]
            opening = begun(self.tokenizer, known, self.start)[: -len(known) or None]
            found.append(self.continuation([*opening, *tokens], len(tokens) - len(known)))
        return found

    def continuation(self, tokens: list[int], scored: int) -> Continuation:
        """The last ``scored`` tokens as a continuation, its context cut from the left to fit.

        Raises:
            UserError: the continuation is empty, or leaves no token before it in the context.
        """
        if scored < 1:
            problem = "a continuation makes no token of its own"
            raise UserError(problem, "check the task's answers for spaces")
        # The last token is predicted, not read.
        cut = max(0, len(tokens) - 1 - self.context)
        if len(tokens) - cut <= scored:
            problem = f"a continuation of {scored} tokens fills the context of {self.context}"
            raise UserError(problem, "use a model with a longer context, or leave the item out")
        return Continuation(tuple(tokens[cut:]), scored, cut)

    def _chat_tokens(self, context: str) -> list[int]:
        return encode_prompt(self.tokenizer, [{"role": "user", "content": context}]).tokens


def load_evaluated_model(
    word: str | Path, machine: ResolvedMachine, *, begins: bool | None = None, chat: bool = False
) -> EvaluatedModel:
    """Read a model by name, folder or file, or find one behind another server.

    Args:
        begins: whether texts begin with the start of text; as the tokenizer does if None.
    """
    if is_address(word):
        return _remote(find_remote(str(word)), machine, chat)
    return make_evaluated_model(read_model(word), machine, begins=begins, chat=chat)


def _remote(model: RemoteModel, machine: ResolvedMachine, chat: bool) -> EvaluatedModel:
    """A model behind another server, whose texts begin as that server begins them."""
    return EvaluatedModel(
        name=model.word,
        model=model,
        tokenizer=model.tokenizer,
        fingerprint=fingerprint(["remote", model.url, model.model, chat]),
        parameters=0,
        precision="unknown",
        start=(),
        chat=chat,
        machine=machine,
    )


def make_evaluated_model(
    read: ReadModel, machine: ResolvedMachine, *, begins: bool | None = None, chat: bool = False
) -> EvaluatedModel:
    """As `load_evaluated_model`, from a model that was read."""
    tokenizer = read.tokenizer
    start = tokenizer.text_start
    if begins is not None:
        start = (start or (tokenizer.start_of_text,)) if begins else ()
    return EvaluatedModel(
        name=read.source.name,
        model=InferenceDecoder(read.decoder, machine),
        tokenizer=tokenizer,
        fingerprint=fingerprint([weights_sum(read.source), machine.precision, bool(start), chat]),
        parameters=sum(each.numel() for each in read.decoder.parameters()),
        precision=machine.precision,
        start=start,
        chat=chat,
        machine=machine,
        sampling=advised_sampling(read.source),
    )
