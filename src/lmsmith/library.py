"""A model that writes and talks, in a few lines of Python: ``lmsmith.load(path)``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from lmsmith.catalogue.adapted import find_adapters, is_adapter, read_adapted, read_low_rank
from lmsmith.catalogue.reading import read_draft_model, read_model
from lmsmith.catalogue.resolve import Sampling, advised_sampling, resolve
from lmsmith.core.errors import UserError
from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.engine import Engine, SamplingSettings, answer, stream
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.machine import resolve_for_reading, stays_packed
from lmsmith.generation.requests import Reply, Request, until_stop
from lmsmith.generation.speculative import PROMPT_LOOKUP, Drafter, DraftModel, PromptLookup
from lmsmith.generation.vocabulary import vocabulary_of
from lmsmith.generation.weights import WeightKind
from lmsmith.models.adapters import LowRank
from lmsmith.models.decoder import Decoder
from lmsmith.options import Weights
from lmsmith.prompts import Message, Prompt, encode_prompt, room_for_reply
from lmsmith.prompts.chat import encode_text_prompts
from lmsmith.tokenizers import StreamDecoder, Tokenizer
from lmsmith.training.machine import ResolvedMachine


def load(
    path: str | Path,
    *,
    machine: MachineConfig | None = None,
    draft: str | Path = "",
    weights: Weights = "model",
    adapters: Mapping[str, str | Path] | None = None,
) -> LanguageModel:
    """Read a model that writes text.

    Args:
        path: a model folder (``runs/quickstart/ppo/model``), a stage's folder
            (``runs/quickstart/ppo``), or a run's (``runs/quickstart``), which stands for its
            last stage that is done: PPO, else SFT, else pretraining; a Hugging Face folder; a
            GGUF file; or a registered name (``smollm2-135m``).
        machine: precision, device and threads; chosen for this machine if None.
        draft: a smaller model of the same tokenizer that guesses the next tokens, or
            ``prompt-lookup``, which guesses that what follows has followed before; the model
            reads several guesses at once and keeps those that are right (speculative decoding).
            The text is the same as without.
        weights: ``model`` reads them as numbers, used in the machine's precision; ``int8`` rounds
            them to 8 bits; ``file`` uses a quantised GGUF file's at its own bits, in a fraction of
            the memory, and has no numbers of them in `LanguageModel.decoder`.
        adapters: folders of adapters by names of your own, PEFT's or ours, made for this model.
            `LanguageModel.adapted` writes with one; all share the model's weights.

    Raises:
        UserError: there is no such model, or it is damaged, or it gives rewards and not text; or
            the draft has another tokenizer; or adapters were made for another model.

    >>> model = lmsmith.load("runs/quickstart")                             # doctest: +SKIP
    >>> model.chat([{"role": "user", "content": "Hello!"}])                 # doctest: +SKIP
    """
    ready = resolve_for_reading(machine or MachineConfig())
    packed = stays_packed(weights, ready.place)
    found = read_model(path, packed=packed)
    drafting: Decoder | PromptLookup | None = None
    if draft:
        lookup = draft == PROMPT_LOOKUP
        drafting = PromptLookup() if lookup else read_draft_model(draft, [found], packed=packed)
    own = {name: resolve(word) for name, word in (adapters or {}).items()}
    whole = next((each for each in own.values() if not is_adapter(each)), None)
    if whole is not None:
        raise UserError(f"{whole.name} is a whole model", "name a folder of adapters, or load it")
    stacks = {name: find_adapters(each, found.source) for name, each in own.items()}
    low_rank = {name: read_low_rank(each, found) for name, each in stacks.items()}
    return LanguageModel(
        found.decoder,
        found.tokenizer,
        card=found.card,
        folder=found.source.path,
        machine=ready,
        sampling=advised_sampling(found.source),
        draft=drafting,
        weights="int8" if weights == "int8" else "model",
        adapters=low_rank,
        tokenizers={name: read_adapted(each, found).tokenizer for name, each in own.items()},
    )


class SamplingOptions(TypedDict, total=False):
    """Drawing of a text's tokens, and its end."""

    max_new_tokens: int
    """Most tokens to write, 128 by default; the context's end may come first."""
    temperature: float | None
    """0 takes the likeliest token every time; as the model's makers advise if None."""
    top_k: int
    """Only the k likeliest tokens may come; 0 means all."""
    top_p: float | None
    """Only the likeliest tokens of this total probability may come; 1 means all; as the makers
    advise if None."""
    seed: int
    """The same seed gives the same text; 0 by default."""


@dataclass(eq=False, repr=False)
class LanguageModel:
    """A decoder with its tokenizer.

    Attributes:
        decoder: the weights, float32; those that stay packed are in `Decoder.packed`.
        card: parents, recipe, data, metrics.
        folder: where it was read from, a folder or a GGUF file, or None.
        machine: precision and threads it writes with.
        sampling: used where a temperature or a top-p is not given.
        draft: guesses the next tokens, or None.
        weights: in the machine's precision, or ``int8``.
        adapters: low-rank changes of the weights, by name.
        tokenizers: of the adapters that have their own: the same tokens, perhaps another template.
        adapter: name of the one that it writes with; the weights as they are if empty.
    """

    decoder: Decoder
    tokenizer: Tokenizer
    _: KW_ONLY
    card: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    machine: ResolvedMachine = field(default_factory=lambda: resolve_for_reading(MachineConfig()))
    sampling: Sampling = field(default_factory=Sampling)
    draft: Decoder | PromptLookup | None = None
    weights: WeightKind = "model"
    adapters: Mapping[str, LowRank] = field(default_factory=dict)
    tokenizers: Mapping[str, Tokenizer] = field(default_factory=dict)
    adapter: str = ""
    _ready: dict[str, tuple[object, InferenceDecoder]] = field(default_factory=dict, init=False)

    @property
    def context(self) -> int:
        """Longest prompt and reply together, in tokens."""
        return self.decoder.config.context

    def adapted(self, name: str) -> LanguageModel:
        """The same model with one of its adapters; both share the weights.

        Raises:
            UserError: there is no adapter of that name.
        """
        if name not in self.adapters:
            there = ", ".join(self.adapters) or "none: give adapters={name: folder} to load"
            raise UserError(f"there is no adapter {name!r}", f"there is {there}")
        tokenizer = self.tokenizers.get(name, self.tokenizer)
        made = replace(self, adapter=name, tokenizer=tokenizer)
        made._ready = self._ready
        return made

    def generate(
        self, text: str, *, stop: str | Sequence[str] = (), **sampling: Unpack[SamplingOptions]
    ) -> str:
        """Continue a text; the result is what comes after it.

        Args:
            text: its beginning; may be empty.
            stop: text or texts at which to end; the result ends before it.
            sampling: see `SamplingOptions`.

        Raises:
            UserError: the text leaves no room in the context, or a setting is out of range.
        """
        return "".join(self.write(self.text_tokens(text), self.settings(**sampling), stop))

    def text_tokens(self, text: str) -> list[int]:
        """A text to be continued, as tokens (`lmsmith.prompts.chat`)."""
        return encode_text_prompts(self.tokenizer, [text])[0].tokens

    def chat(
        self,
        messages: Sequence[Message],
        *,
        stop: str | Sequence[str] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> str:
        """The assistant's reply to a conversation that a user's message ends.

        Args:
            messages: ``{"role": "system" | "user" | "assistant", "content": text}``. Where they
                do not fit the context the oldest turns are dropped, never the system message.
            stop, sampling: as in `generate`.

        Raises:
            UserError: messages in the wrong form, or too long even without the oldest turns.
        """
        return "".join(self.stream_chat(messages, stop=stop, **sampling))

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        stop: str | Sequence[str] = (),
        **sampling: Unpack[SamplingOptions],
    ) -> Iterator[str]:
        """Like `chat`, in pieces as they are written, none of which ends inside a character."""
        settings = self.settings(**sampling)
        return self.write(self.prompt(messages, settings).tokens, settings, stop, is_message=True)

    def settings(
        self,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float | None = None,
        seed: int = 0,
    ) -> SamplingSettings:
        """Sampling that ends at the tokenizer's stop tokens: none of them is part of a text."""
        stops = self.tokenizer.stop_tokens
        temperature = self.sampling.temperature if temperature is None else temperature
        top_p = self.sampling.top_p if top_p is None else top_p
        return SamplingSettings(max_new_tokens, temperature, top_k, top_p, stops, seed)

    def prompt(self, messages: Sequence[Message], settings: SamplingSettings) -> Prompt:
        """The conversation as tokens, with room left for a reply: a quarter of the context."""
        reserve = room_for_reply(self.context, settings.max_new_tokens)
        return encode_prompt(self.tokenizer, messages, self.context - reserve)

    def write(
        self,
        tokens: Sequence[int],
        settings: SamplingSettings,
        stop: str | Sequence[str] = (),
        *,
        is_message: bool = False,
    ) -> Iterator[str]:
        """Write on after ``tokens``, in pieces of whole characters; ends before a stop text."""
        stops = [stop] if isinstance(stop, str) else list(stop)
        if "" in stops:
            raise UserError("stop: an empty text would end every reply at once", "leave it out")
        decoder = StreamDecoder(self.tokenizer, () if is_message else tokens)
        # A character cut off by the reply's end is left out: the stream is not flushed.
        pieces = (decoder.push(token) for token in self.write_tokens(tokens, settings))
        return (piece for piece in until_stop(pieces, stops) if piece)

    def write_tokens(self, tokens: Sequence[int], settings: SamplingSettings) -> Iterator[int]:
        """The tokens that follow ``tokens``, a stop token included."""
        model, drafter = self._inference_decoder(), self._drafter()
        tokenizer, adapter = self.tokenizer, self.adapter
        return stream(
            model, tokens, settings, tokenizer=tokenizer, drafter=drafter, adapter=adapter
        )

    def whole_reply(self, tokens: Sequence[int], settings: SamplingSettings) -> Reply:
        """The whole text that follows ``tokens``, with its tokens, end and log-probabilities.

        Raises:
            UserError: the tokens leave no room in the context, or a setting is out of range.
        """
        model, drafter = self._inference_decoder(), self._drafter()
        engine = Engine(model, tokenizer=self.tokenizer, rows=1, drafter=drafter)
        return answer(engine, [Request(tokens, settings, "the prompt", adapter=self.adapter)])[0][0]

    def next_tokens(self, tokens: Sequence[int], top: int = 10) -> list[tuple[str, float]]:
        """Texts and probabilities of the likeliest tokens to follow ``tokens``."""
        known = vocabulary_of(self.tokenizer, self.decoder.config.vocabulary_size).tokens
        top = min(top, known)
        reply = self.whole_reply(tokens, SamplingSettings(1, temperature=0, top_log_probs=top))
        pairs = reply.log_probs[0].top
        return [(self.tokenizer.decode([t], special=True), math.exp(p)) for t, p in pairs]

    def _drafter(self) -> Drafter | None:
        if isinstance(self.draft, Decoder):
            return DraftModel(self._prepared("draft", self.draft))
        return self.draft

    def _inference_decoder(self) -> InferenceDecoder:
        return self._prepared("model", self.decoder)

    def _prepared(self, name: str, decoder: Decoder) -> InferenceDecoder:
        """Made once, and again when the weights have changed since."""
        state = [(p.data_ptr(), p._version) for p in decoder.parameters()]
        if name not in self._ready or self._ready[name][0] != state:
            adapters = self.adapters if decoder is self.decoder else None
            made = InferenceDecoder(decoder, self.machine, weights=self.weights, adapters=adapters)
            self._ready[name] = state, made
        return self._ready[name][1]
