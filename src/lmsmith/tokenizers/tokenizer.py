"""One tokenizer for every kind: text to ids and back, and conversations."""

from __future__ import annotations

import codecs
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmsmith.core.errors import UserError, refusing_damage
from lmsmith.core.files import atomic_write, read_json, write_json
from lmsmith.core.text import encodable
from lmsmith.tokenizers.bpe import TOKENIZER_FILE, check_is_ours, train_description
from lmsmith.tokenizers.chat_format import (
    CHAT_FILE,
    JINJA_TEMPLATE,
    OWN_FORMAT,
    ROLE_TOKENS,
    ChatFormat,
    read_chat_format,
)
from lmsmith.tokenizers.control_tokens import refusing_panic, shielded_backend
from lmsmith.tokenizers.description import MOST_BYTES, check_description
from lmsmith.tokenizers.template import ChatTemplate, Rendering
from lmsmith.tokenizers.token_bytes import Utf8Table, read_pieces, utf8_table

_CANNOT_ENCODE = ("this tokenizer cannot encode the text", "use a model with another tokenizer")


def _fixed_by_ftfy(text: str) -> str:
    """`text` with broken encodings fixed and quotation marks straightened, as GPT-1 read it."""
    try:
        import ftfy
    except ImportError as error:
        raise UserError(
            "this tokenizer cleans text with ftfy, which is not installed",
            'install it: pip install "lmsmith[corpus]"',
        ) from error
    return ftfy.fix_text(text)


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as tokens, and for each the number of the assistant's message, or -1.

    A message's tokens are its content and what ends the turn.
    """

    tokens: list[int]
    authors: list[int]


class Tokenizer:
    """Text to token ids and back: lmsmith's own byte-level BPE, or a model's from outside.

    No text makes a control token or a marker of the template, whatever it spells. Kinds differ in
    their data alone: the contents of a ``tokenizer.json``, and a `ChatFormat`.

    Attributes:
        format: control tokens by name, and the chat template; `ChatFormat` describes
            ``start_of_text``, ``text_start``, ``end_of_text`` and ``end_of_turn``, here ids.
        stop_tokens: ids at which a reply ends, `end_of_turn` first.
        control_tokens: names by id of the tokens that are part of no text.
        template: how a conversation is written; None for lmsmith's own format.
        drops_first_space, drops_last_space: whether that space of a text is the tokenizer's own.
    """

    def __init__(self, description: Mapping[str, Any], chat_format: ChatFormat) -> None:
        """See `train`, `load`, and the modules named after the kinds.

        Raises:
            UserError: the vocabulary has not all tokens of the format, or cannot be read.
        """
        self.description, self.format = description, chat_format
        vocabulary = vocabulary_of(description)
        missing = [name for name in chat_format.names if name not in vocabulary]
        if missing:
            raise UserError(
                f"the tokenizer has no token {', '.join(missing)}, which its chat format names",
                "name tokens that are in its vocabulary",
            )
        added = description.get("added_tokens") or []
        self.control_tokens = {t["id"]: t["content"] for t in added if t.get("special")}
        self.control_tokens |= {vocabulary[name]: name for name in chat_format.names}
        self._shielded = self.control_tokens | {
            vocabulary[name]: name for name in chat_format.markers if name in vocabulary
        }
        self._backend, self._spelling, self._guard = shielded_backend(description, self._shielded)
        self._bytes, self.drops_first_space, self.drops_last_space = read_pieces(
            description, vocabulary, self.control_tokens
        )
        self.start_of_text = vocabulary[chat_format.start_of_text]
        self.text_start = tuple(vocabulary[name] for name in chat_format.text_start)
        self.end_of_text = vocabulary[chat_format.end_of_text]
        self.end_of_turn = vocabulary[chat_format.end_of_turn]
        stops = (chat_format.end_of_turn, chat_format.end_of_text, *chat_format.stops)
        self.stop_tokens = tuple(dict.fromkeys(vocabulary[name] for name in stops))
        self.template: ChatTemplate | None = None
        self._roles: dict[str, int] = {}
        if chat_format.jinja is None:
            self._roles = {role: vocabulary[name] for role, name in ROLE_TOKENS.items()}
        else:
            self.template = ChatTemplate(chat_format.jinja, chat_format.variables)

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary_size: int) -> Tokenizer:
        """Learn lmsmith's byte-level BPE (`lmsmith.tokenizers.bpe`) from `texts`.

        The same texts give the same tokenizer, byte for byte. It has fewer than `vocabulary_size`
        tokens when the texts have no more pairs that occur twice.

        Raises:
            UserError: `vocabulary_size` has no room for bytes and control tokens, or is absurd.
        """
        return cls(train_description(texts, vocabulary_size), OWN_FORMAT)

    @classmethod
    def load(cls, folder_or_file: Path | str) -> Tokenizer:
        """Read a folder that `save` wrote, a model folder, or the ``tokenizer.json`` in one.

        A file without ``chat.json`` beside it is taken for one of lmsmith's own; a Hugging Face
        folder is for `lmsmith.tokenizers.hugging_face`.

        Raises:
            UserError: the file is missing, is damaged, or is another program's tokenizer.
        """
        path = Path(folder_or_file)
        is_folder = path.is_dir()
        chat = (path if is_folder else path.parent) / CHAT_FILE
        chat_format = read_chat_format(chat) if is_folder or chat.is_file() else OWN_FORMAT
        path = path / TOKENIZER_FILE if is_folder else path
        description = read_json(path, MOST_BYTES)
        if chat_format is OWN_FORMAT:
            check_is_ours(description, path)
        try:
            with refusing_damage("the tokenizer", "import the model again"):
                return cls(check_description(description, path.stat().st_size), chat_format)
        except UserError as error:
            raise UserError(f"{path}: {error.problem}", error.fix) from error

    def save(self, folder: Path | str) -> None:
        """Write ``tokenizer.json`` and ``chat.json`` into `folder`, made if it is missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.description, ensure_ascii=False, indent=2)
        atomic_write(folder / TOKENIZER_FILE, text)
        write_json(folder / CHAT_FILE, self.format.description())

    @property
    def is_own(self) -> bool:
        """Whether it was trained here, with lmsmith's control tokens and chat format."""
        return self.template is None

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens, control tokens included; ids are ``range(vocabulary_size)``."""
        return len(self._bytes)

    @functools.cached_property
    def utf8(self) -> Utf8Table:
        """Which tokens may follow a text so that its bytes stay valid UTF-8."""
        return utf8_table(self._bytes, self.control_tokens)

    @property
    def document_start(self) -> tuple[int, ...]:
        """Ids before a document to learn from: what begins text prompts, or parts texts."""
        return self.text_start or (self.end_of_text,)

    @property
    def shielded(self) -> list[str]:
        """Names of all tokens that no text makes: control tokens, and markers of the template."""
        return list(self._shielded.values())

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; never a control token, whatever the text spells.

        (A vocabulary without all bytes has one token for what it does not know; that one comes.)
        """
        return self._ids(self._clean(text))

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._encoding(text).ids
        return ids

    def _encoding(self, text: str) -> Any:
        self._guard.check([text])
        with refusing_panic(*_CANNOT_ENCODE):
            return self._backend.encode(text, add_special_tokens=False)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``[encode(text) for text in texts]``, on all cores."""
        cleaned = [self._clean(text) for text in texts]
        self._guard.check(cleaned)
        with refusing_panic(*_CANNOT_ENCODE):
            encodings = self._backend.encode_batch_fast(cleaned, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(
        self, ids: Iterable[int], *, special: bool = False, after: Sequence[int] = ()
    ) -> str:
        """Text of `ids`. Bytes that are not UTF-8 become U+FFFD.

        Control tokens are left out, or written as they are named if `special`.

        Args:
            after: ids that the text goes on from. SentencePiece writes a word's space before it,
                and decoding drops the one that a text begins with: no text begins after others.
        """
        names = self.control_tokens
        pieces = (
            names[token].encode() if special and token in names else self.token_bytes(token)
            for token in ids
        )
        text = b"".join(pieces).decode("utf-8", errors="replace")
        own, held = self.spaces_after(after)
        text = (held + text).removeprefix(" " if own else "")
        return text.removesuffix(" ") if self.drops_last_space else text

    def spaces_after(self, ids: Sequence[int]) -> tuple[bool, str]:
        """How a text goes on after `ids`: whether its first space is the tokenizer's own, as where
        a text begins, and the space at the end of `ids` that was held back as a possible last one.
        """
        if not (self.drops_first_space or self.drops_last_space):
            return False, ""
        pieces = (self._bytes[token] for token in reversed(ids) if token < len(self._bytes))
        last = next(filter(None, pieces), b"")
        held = " " if self.drops_last_space and last.endswith(b" ") else ""
        return self.drops_first_space and not last, held

    def token_bytes(self, token: int) -> bytes:
        """The bytes that `token` adds to a text; a ValueError if there is no such id."""
        if not 0 <= token < len(self._bytes):
            raise ValueError(f"token id {token} is not in 0..{len(self._bytes) - 1}")
        return self._bytes[token]

    def role_token(self, role: str) -> int:
        """Id of the token that opens a message of `role`, in lmsmith's own format only."""
        return self._roles[role]

    def encode_chat(self, messages: Sequence[Mapping[str, str]], *, ask: bool) -> EncodedChat:
        """A conversation as tokens by the model's own template.

        The ids are those of the plainly rendered conversation where no message spells a control
        token, and where one does, it is text.

        Args:
            ask: end with what opens the assistant's reply.

        Raises:
            UserError: the template cannot write it; see `ChatTemplate.render`. Without ``ask``,
                also if it cannot be known which text is the assistant's.
        """
        cleaned = self._cleaned(messages)
        rendering = self._rendered(cleaned, ask)
        text, starts = self._with_secrets(rendering)
        encoding = self._encoding(text)
        if ask:
            return EncodedChat(encoding.ids, [-1] * len(encoding.ids))
        authors = [-1] * (len(rendering.text) + 1)
        stops = {self.control_tokens[token] for token in self.stop_tokens}
        for reply in rendering.replies(cleaned, stops):
            authors[reply.start : reply.end] = [reply.message] * (reply.end - reply.start)
        places = [(starts[start], starts[max(start, end - 1)]) for start, end in encoding.offsets]
        # A token may begin before the content (" how" after "[/INST]") or go on after it.
        return EncodedChat(
            encoding.ids, [max(authors[first], authors[last]) for first, last in places]
        )

    def render_chat(self, messages: Sequence[Mapping[str, str]], *, ask: bool) -> Rendering:
        """A conversation as a text, by `ChatTemplate.render`; see `encode_rendered`."""
        return self._rendered(self._cleaned(messages), ask)

    def _rendered(self, cleaned: Sequence[Mapping[str, str]], ask: bool) -> Rendering:
        template = self.template or ChatTemplate(JINJA_TEMPLATE, {})
        return template.render(cleaned, ask=ask, controls=self.shielded)

    def encode_rendered(self, rendering: Rendering, then: str = "") -> list[int]:
        """Ids of a rendered conversation and a text after it, which makes no control token."""
        return self._ids(self._with_secrets(rendering)[0] + self._clean(then))

    def _with_secrets(self, rendering: Rendering) -> tuple[str, list[int]]:
        """The text with secrets for control tokens, and the place each character comes from."""
        ids = self._ids_by_name
        pieces: list[str] = []
        places: list[int] = []
        at = 0
        for start, end in rendering.controls:
            secret = self._spelling[ids[rendering.text[start:end]]]
            pieces += [rendering.text[at:start], secret]
            places += [*range(at, start), *[start] * len(secret)]
            at = end
        pieces.append(rendering.text[at:])
        places += range(at, len(rendering.text) + 1)
        return "".join(pieces), places

    @functools.cached_property
    def _ids_by_name(self) -> dict[str, int]:
        return {name: token for token, name in self._shielded.items()}

    def _cleaned(self, messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
        return [{**message, "content": self._clean(message["content"])} for message in messages]

    def _clean(self, text: str) -> str:
        text = encodable(text)
        return _fixed_by_ftfy(text) if self.format.cleaning == "ftfy" else text


def vocabulary_of(description: Mapping[str, Any]) -> dict[str, int]:
    """Id of each token as it is written, added tokens included."""
    vocabulary = description["model"].get("vocab") or {}
    if isinstance(vocabulary, list):
        vocabulary = {entry[0]: token for token, entry in enumerate(vocabulary)}
    added = {token["content"]: token["id"] for token in description.get("added_tokens") or []}
    return {**vocabulary, **added}


class StreamDecoder:
    """Decode a stream of ids; the parts join to ``tokenizer.decode(ids, after=after)``.

    A token may end in the middle of a UTF-8 character (Chinese, emoji); its first bytes are held
    back until the rest has come.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._at_start, self._held = tokenizer.spaces_after(after)

    def push(self, token: int) -> str:
        """The text that is complete now that `token` has come; often empty for multi-byte text."""
        return self._trimmed(self._decoder.decode(self._tokenizer.token_bytes(token)))

    def flush(self) -> str:
        """End the stream: U+FFFD if it stopped inside a character. The decoder can be reused."""
        rest = self._trimmed(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        self._at_start, self._held = self._tokenizer.spaces_after(())
        return rest

    def _trimmed(self, text: str) -> str:
        """Without the space that the tokenizer itself put at the start, or at the end."""
        if self._at_start and text:
            self._at_start = False
            text = text.removeprefix(" ")
        if self._tokenizer.drops_last_space and text:
            text, self._held = self._held + text, ""
            if text.endswith(" "):
                text, self._held = text[:-1], " "
        return text
