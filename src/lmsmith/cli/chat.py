"""``lmsmith chat``: talk with a model, in a terminal, a pipe or one shot."""

from __future__ import annotations

import contextlib
import difflib
import json as json_module
import secrets
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmsmith.cli.output import print_json
from lmsmith.core.errors import UserError
from lmsmith.core.files import read_jsonl, write_jsonl
from lmsmith.core.terminal import visible
from lmsmith.core.text import encodable
from lmsmith.options import Weights
from lmsmith.runs.stage_folder import derive_seed

if TYPE_CHECKING:
    from lmsmith.generation.settings import SamplingSettings
    from lmsmith.library import LanguageModel


HELP = """\
/system TEXT     set the system message; without TEXT, remove it
/reset           begin a new conversation (the system message stays)
/undo            take back the last message and its reply
/explain [TEXT]  how the reply to your last message could begin (after TEXT): probabilities
/save FILE       add this conversation to a JSONL file
/temperature X   0 takes the likeliest token every time
/top-p X         only the likeliest tokens of this total probability may come; 1 means all
/max-tokens N    longest reply
/seed N          replies from here on are the same for the same seed
/help            this list
/quit            end; so does Ctrl-D
Ctrl-C stops a reply. A line that begins with // is sent with one /."""

Write = Callable[[str], object]

COMMANDS = [line.split()[0] for line in HELP.splitlines() if line.startswith("/")]


def chat(
    model: str,
    *,
    temperature: float | None = None,
    top_p: float | None = None,
    max_tokens: int = 128,
    seed: int | None = None,
    system: str = "",
    message: tuple[str, ...] = (),
    json: bool = False,
    draft: str = "",
    weights: Weights = "file",
) -> None:
    """Talk with a model, with several turns kept within its context.

    In a terminal, /help lists the commands, Ctrl-C stops a reply and Ctrl-D ends. From a pipe,
    each line is a turn, and only the replies are printed on standard output.

    Args:
        model: A run (runs/quickstart: its last stage), a stage's folder, a model folder, a
            Hugging Face folder, a GGUF file or a registered name (smollm2-135m).
        max_tokens: Longest reply, in tokens.
        seed: Of all chance; a fresh one if not given.
        system: The system message.
        message: Say this, print the reply and end; more than once for several turns.
        json: Print the conversation as one JSON object at the end, and nothing else.
        weights: As the file has them (a quantised GGUF file at its own bits), expanded to the
            precision (model), or rounded to int8.
    """
    interactive = not message and sys.stdin.isatty()
    if json and interactive:
        raise UserError("--json: there is nothing to answer", "give a --message, or pipe text in")
    from lmsmith.core.recipe import MachineConfig
    from lmsmith.generation.machine import prepare_reading
    from lmsmith.library import load

    prepare_reading(MachineConfig())
    language_model = load(model, draft=draft, weights=weights)
    advised = language_model.sampling
    settings = ChatSettings(
        advised.temperature if temperature is None else temperature,
        advised.top_p if top_p is None else top_p,
        max_tokens,
        secrets.randbelow(2**31) if seed is None else seed,
    )
    session = ChatSession(language_model, settings)
    session.change()
    if system:
        session.set_system(system)
    if interactive:
        _converse(session)
        return
    lines = iter(message) if message else (line.rstrip("\r\n") for line in sys.stdin)
    _answer_all(session, lines, quiet=json, commands=not message)
    if json:
        turns = session.turns
        print_json({
            "model": str(language_model.folder),
            **asdict(session.settings),
            "messages": session.messages,
            "replies": [turn["content"] for turn in turns if turn["role"] == "assistant"],
            "dropped_messages": session.dropped,
        })  # fmt: skip


@dataclass(frozen=True)
class ChatSettings:
    """Settings that commands change between two replies."""

    temperature: float = 0.8
    top_p: float = 0.95
    max_tokens: int = 128
    seed: int = 0


@dataclass
class ChatSession:
    """A conversation with a model.

    Attributes:
        settings: of the next reply.
        turns: users' and assistants' messages, a user's first, each answered.
        replies: asked for since the seed was set; each draws from a seed of its own.
        dropped: how many of the oldest messages the last reply did not see.
        id: of the conversation in a file it is saved to.
    """

    model: LanguageModel
    settings: ChatSettings = field(default_factory=ChatSettings)
    system: str = ""
    turns: list[dict[str, str]] = field(default_factory=list)
    replies: int = 0
    dropped: int = 0
    id: str = field(default_factory=lambda: f"chat-{secrets.token_hex(6)}")

    @property
    def messages(self) -> list[dict[str, str]]:
        """The whole conversation, the system message first."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return opening + self.turns

    def _sampling(self, settings: ChatSettings) -> SamplingSettings:
        return self.model.settings(
            settings.max_tokens, settings.temperature, 0, settings.top_p, settings.seed
        )

    def answer(self, text: str, write: Write) -> str:
        """Say something, and return the reply; ``write`` gets it in pieces as it comes.

        Ctrl-C ends the reply: the part that was written stays in the history. If that is nothing,
        or after an error, the history is as it was before.
        """
        before = len(self.turns)
        written: list[str] = []
        self.turns.append({"role": "user", "content": encodable(text)})
        try:
            for piece in self._pieces():
                written.append(piece)
                write(piece)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) and written:
                self.turns.append({"role": "assistant", "content": "".join(written)})
            else:
                del self.turns[before:]
            raise
        self.turns.append({"role": "assistant", "content": "".join(written)})
        return self.turns[-1]["content"]

    def _pieces(self) -> Iterator[str]:
        seed = derive_seed(self.settings.seed, "reply", self.replies)
        sampling = self._sampling(replace(self.settings, seed=seed))
        prompt = self.model.prompt(self.messages, sampling)
        self.dropped = prompt.dropped_messages
        self.replies += 1
        return self.model.write(prompt.tokens, sampling, is_message=True)

    def next_tokens(self, beginning: str = "", top: int = 10) -> list[tuple[str, float]]:
        """The ``top`` likeliest tokens, with probabilities, after ``beginning`` of the reply."""
        answered = bool(self.turns) and self.turns[-1]["role"] == "assistant"
        messages = self.messages[:-1] if answered else self.messages
        tokens = self.model.prompt(messages, self._sampling(self.settings)).tokens
        return self.model.next_tokens(tokens + self.model.tokenizer.encode(beginning), top)

    def change(self, **values: float) -> None:
        """Change settings, or none if one is out of range (UserError); a seed restarts draws."""
        from lmsmith.core.config import SettingsError

        changed = replace(self.settings, **values)  # type: ignore[arg-type]
        if problems := self._sampling(changed).check():
            raise SettingsError(problems)
        self.settings = changed
        if "seed" in values:
            self.replies = 0

    def set_system(self, text: str) -> None:
        """Set the system message, or remove it; UserError if it leaves no room for a reply."""
        text = encodable(text)
        if text:
            messages = [{"role": "system", "content": text}, {"role": "user", "content": "?"}]
            self.model.prompt(messages, self._sampling(self.settings))
        self.system = text

    def reset(self) -> None:
        """Begin a new conversation under the same system message."""
        self.turns.clear()
        self.dropped = 0
        self.id = f"chat-{secrets.token_hex(6)}"

    def undo(self) -> bool:
        """Take back the last message and its reply; False if there is none."""
        had = bool(self.turns)
        del self.turns[-2:]
        return had

    def save(self, path: Path) -> int:
        """Add this conversation to a JSONL file, or replace it there; the file's conversations.

        A file that holds something else stays as it was (UserError).
        """
        if not self.turns:
            raise UserError("there is nothing to save yet", "say something first")
        rows = [row for _, row in read_jsonl(path, kept=True)] if path.exists() else []
        for number, row in enumerate(rows, start=1):
            if "messages" not in row:
                raise UserError(
                    f"{path}, row {number} is not a conversation", "save to another file"
                )
        rows = [row for row in rows if row.get("id") != self.id]
        rows.append({"messages": self.messages, "id": self.id})
        write_jsonl(path, rows)
        return len(rows)


def run_command(session: ChatSession, line: str) -> str | None:
    """Carry out a line that begins with a slash; the text for the user, or None to end."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name in ("/quit", "/exit"):
        return None
    if name == "/help":
        return HELP
    if name == "/system":
        session.set_system(rest)
        return "system message set" if rest else "system message removed"
    if name == "/reset":
        session.reset()
        return "a new conversation"
    if name == "/undo":
        return "taken back" if session.undo() else "there is nothing to take back"
    if name == "/explain":
        return bars(session.next_tokens(rest))
    if name == "/save":
        if not rest:
            raise UserError("/save: to which file?", "for instance /save talk.jsonl")
        path = Path(rest).expanduser()
        count = session.save(path)
        return f"saved; {path} holds {count} conversation{'s' if count > 1 else ''}"
    if name in COMMANDS:  # the others change a setting
        setting = name[1:].replace("-", "_")
        if rest:
            kind = type(getattr(ChatSettings, setting))
            session.change(**{setting: _number(name, rest, kind)})
        return f"{name[1:]} {getattr(session.settings, setting)}"
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5)
    raise UserError(
        f"{name}: unknown command",
        f"did you mean {near[0]}?" if near else "/help lists them; // sends a line with one /",
    )


BAR = 30
"""Characters of a bar that stands for certainty."""


def bars(choices: Sequence[tuple[str, float]]) -> str:
    """A line a token: its text, its probability, and a bar as long."""
    shown = [(json_module.dumps(text, ensure_ascii=False), share) for text, share in choices]
    width = max(len(text) for text, _ in shown)
    return "\n".join(
        f"{text:<{width}}  {100 * share:5.1f} %  {'█' * round(BAR * share) or '▏'}"
        for text, share in shown
    )


def _number(name: str, text: str, kind: type[float]) -> float:
    try:
        return kind(text)
    except ValueError:
        expected = "a whole number" if kind is int else "a number"
        raise UserError(f"{name} {text}: expected {expected}") from None


def _converse(session: ChatSession) -> None:
    """The terminal: prompts, notes, and errors that end nothing."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() then has history and editing)
    model, config = session.model, session.model.decoder.config
    _note(
        f"{model.folder}: {config.parameters / 1e6:.1f}M parameters, {config.layers} layers of "
        f"{config.width}, a context of {config.context} tokens\n"
        "/help lists the commands; Ctrl-D ends."
    )
    from lmsmith.generation.native.library import advice_on_kernels

    if advice := advice_on_kernels():
        _note(advice)
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            _note("Ctrl-D or /quit ends.")
            continue
        try:
            if not _take_line(session, line, _print):
                return
        except KeyboardInterrupt:
            print()
            _note("(stopped)")
        except UserError as error:
            _note(str(error))


def _answer_all(session: ChatSession, lines: Iterator[str], *, quiet: bool, commands: bool) -> None:
    """Every line a turn; the first error ends it."""
    write = None if quiet else _print
    for line in lines:
        if not commands:
            _take_turn(session, line, write)
        elif not _take_line(session, line, write):
            return


def _take_line(session: ChatSession, line: str, write: Write | None) -> bool:
    """A line the user typed: a command or a turn. False if it ends the talk."""
    line = line.strip()
    if line.startswith("/") and not line.startswith("//"):
        told = run_command(session, line)
        if told is not None and write is not None:
            _note(told)
        return told is not None
    if line:
        _take_turn(session, line.removeprefix("/"), write)
    return True


def _take_turn(session: ChatSession, text: str, write: Write | None) -> None:
    dropped_before = session.dropped
    reply = session.answer(text, write or (lambda _: None))
    if write is not None:
        print(flush=True)
        if not reply:
            _note("(the model ended its turn without a word)")
    if session.dropped and not dropped_before:
        _note(
            f"(the conversation has outgrown the model's {session.model.context} tokens: "
            "from here on its oldest messages are left out)"
        )


def _print(piece: str) -> None:
    print(visible(piece), end="", flush=True)


def _note(text: str) -> None:
    """To the user, not part of any reply."""
    print(visible(text), file=sys.stderr, flush=True)
