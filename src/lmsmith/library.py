"""A model that writes and talks, in a few lines of Python: ``lmsmith.load(path)``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError
from lmsmith.core.files import read_json
from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.engine import SamplingSettings, stream
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.stops import until_stop
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import load_decoder, load_tokenizer
from lmsmith.prompts import Message, Prompt, encode_prompt
from lmsmith.tokenizers import StreamDecoder, Tokenizer
from lmsmith.training.machine import ResolvedMachine, resolve_machine

WRITING_STAGES = ("ppo", "sft", "pretrain")
"""The stages that make a model which writes, the most aligned first."""


def load(path: str | Path, *, machine: MachineConfig | None = None) -> LanguageModel:
    """Read a model that writes text.

    Args:
        path: a model folder (``runs/quickstart/ppo/model``), a stage's folder
            (``runs/quickstart/ppo``), or a run's (``runs/quickstart``), which stands for its
            last stage that is done: PPO, else SFT, else pretraining.
        machine: precision and threads; chosen for this machine if None.

    Raises:
        UserError: there is no such model, or it is damaged, or it gives rewards and not text.

    >>> model = lmsmith.load("runs/quickstart")                             # doctest: +SKIP
    >>> model.chat([{"role": "user", "content": "Hello!"}])                 # doctest: +SKIP
    """
    folder = find_model_folder(Path(path))
    decoder, tokenizer = load_decoder(folder), load_tokenizer(folder)
    if decoder.config.vocabulary_size != tokenizer.vocabulary_size:
        raise UserError(
            f"{folder}: the model knows {decoder.config.vocabulary_size} tokens and the "
            f"tokenizer beside it {tokenizer.vocabulary_size}",
            "the files in it come from different runs: run the stage that wrote it again",
        )
    card_path = folder / "card.json"
    card = read_json(card_path) if card_path.is_file() else {}
    return LanguageModel(
        decoder,
        tokenizer,
        card=card if isinstance(card, dict) else {},
        folder=folder,
        machine=resolve_machine(machine or MachineConfig()),
    )


def find_model_folder(path: Path) -> Path:
    """The model folder that a path means; see `load`.

    Raises:
        UserError: nothing there is a model; says what is.
    """
    candidates = [path, path / "model", *(path / stage / "model" for stage in WRITING_STAGES)]
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    if not path.exists():
        raise UserError(f"{path}: no such folder", _near_models(path))
    if not path.is_dir():
        raise UserError(f"{path} is a file; a model is a folder", "name the folder it is in")
    names = sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))
    found = "it is empty" if not names else "it holds " + ", ".join(names[:12])
    if len(names) > 12:
        found += f" and {len(names) - 12} more"
    if (path / "recipe.json").is_file():
        raise UserError(
            f"{path} is a run without a model yet ({found})",
            "run `lmsmith run` with its recipe until pretrain, sft or ppo is done",
        )
    raise UserError(
        f"{path} is neither a model folder nor a run ({found})",
        "name a run such as runs/quickstart, or a folder that a stage wrote, such as "
        "runs/quickstart/ppo/model",
    )


def _near_models(path: Path) -> str:
    """What to name instead of a path that does not exist."""
    if not path.is_absolute() and (Path("runs") / path).is_dir():
        return f"did you mean {Path('runs') / path}?"
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    names = [f.name for f in folder.iterdir() if f.is_dir() and not f.name.startswith(".")]
    runs = sorted(str(f.parent) for f in Path("runs").glob("*/recipe.json"))
    if folder != Path() and names:
        return f"{folder} holds {', '.join(sorted(names)[:12])}"
    if runs:
        return f"the runs here: {', '.join(runs[:12])}"
    return "make one with `lmsmith run quickstart`"


class LanguageModel:
    """A decoder with its tokenizer.

    Attributes:
        decoder: the weights, float32.
        tokenizer: text to token ids and back.
        card: where the model comes from: parents, recipe, data, metrics.
        folder: where it was read from, or None.
        machine: precision and threads it writes with.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        card: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        machine: ResolvedMachine | None = None,
    ) -> None:
        self.decoder = decoder
        self.tokenizer = tokenizer
        self.card = dict(card or {})
        self.folder = folder
        self.machine = machine or resolve_machine(MachineConfig())
        self._ready: tuple[object, InferenceDecoder] | None = None

    @property
    def context(self) -> int:
        """Longest prompt and reply together, in tokens."""
        return self.decoder.config.context

    def generate(
        self,
        text: str,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.95,
        seed: int = 0,
        stop: str | Sequence[str] = (),
    ) -> str:
        """Continue a text; the result is what comes after it.

        Args:
            text: its beginning; may be empty.
            max_new_tokens: most tokens to write; the context's end may come first.
            temperature: 0 takes the likeliest token every time.
            top_k: only the k likeliest tokens may come; 0 means all.
            top_p: only the likeliest tokens of this total probability may come; 1 means all.
            seed: of all chance; the same seed gives the same text.
            stop: text or texts at which to end; the result ends before it.

        Raises:
            UserError: the text leaves no room in the context, or a setting is out of range.
        """
        settings = self.settings(max_new_tokens, temperature, top_k, top_p, seed)
        tokens = [self.tokenizer.end_of_text, *self.tokenizer.encode(text)]
        return "".join(self.write(tokens, settings, stop))

    def chat(
        self,
        messages: Sequence[Message],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.95,
        seed: int = 0,
        stop: str | Sequence[str] = (),
    ) -> str:
        """The assistant's reply to a conversation that a user's message ends.

        Args:
            messages: ``{"role": "system" | "user" | "assistant", "content": text}``. Where they
                do not fit the context the oldest turns are dropped, never the system message.

        The others are those of `generate`.

        Raises:
            UserError: messages in the wrong form, or too long even without the oldest turns.
        """
        settings = self.settings(max_new_tokens, temperature, top_k, top_p, seed)
        return "".join(self.write(self.prompt(messages, settings).tokens, settings, stop))

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 0.95,
        seed: int = 0,
        stop: str | Sequence[str] = (),
    ) -> Iterator[str]:
        """Like `chat`, in pieces as they are written, none of which ends inside a character."""
        settings = self.settings(max_new_tokens, temperature, top_k, top_p, seed)
        return self.write(self.prompt(messages, settings).tokens, settings, stop)

    def settings(
        self, max_new_tokens: int, temperature: float, top_k: int, top_p: float, seed: int
    ) -> SamplingSettings:
        """Sampling that ends at any control token: none of them is part of a text."""
        tokenizer = self.tokenizer
        roles = (tokenizer.system, tokenizer.user, tokenizer.assistant)
        stop_tokens = (tokenizer.end_of_turn, tokenizer.end_of_text, *roles)
        return SamplingSettings(max_new_tokens, temperature, top_k, top_p, stop_tokens, seed)

    def prompt(self, messages: Sequence[Message], settings: SamplingSettings) -> Prompt:
        """The conversation as tokens, with room left for a reply: a quarter of the context."""
        reserve = max(1, min(settings.max_new_tokens, self.context // 4))
        return encode_prompt(self.tokenizer, messages, self.context - reserve)

    def write(
        self, tokens: Sequence[int], settings: SamplingSettings, stop: str | Sequence[str] = ()
    ) -> Iterator[str]:
        """What comes after ``tokens``, in pieces of whole characters; ends before a stop text."""
        stops = [stop] if isinstance(stop, str) else list(stop)
        if "" in stops:
            raise UserError("stop: an empty text would end every reply at once", "leave it out")
        decoder = StreamDecoder(self.tokenizer)
        # A character cut off by the reply's end is left out: the stream is not flushed.
        pieces = (
            decoder.push(token) for token in stream(self._inference_decoder(), tokens, settings)
        )
        return (piece for piece in until_stop(pieces, stops) if piece)

    def _inference_decoder(self) -> InferenceDecoder:
        """Made once, and again when the weights have changed since."""
        state = [(p.data_ptr(), p._version) for p in self.decoder.parameters()]
        if self._ready is None or self._ready[0] != state:
            self._ready = (state, InferenceDecoder(self.decoder, self.machine))
        return self._ready[1]
