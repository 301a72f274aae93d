"""Stage: byte-level BPE or WordPiece learnt from the training documents, or one made before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from lmsmith.catalogue.reading import load_any_tokenizer, tokenizer_files
from lmsmith.core.config import NOT_A_SETTING
from lmsmith.core.errors import UserError
from lmsmith.core.files import beside, read_json
from lmsmith.corpus.finished import CORPUS_SHARDS_FILE
from lmsmith.corpus.rows import read_documents
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.bpe import LARGEST_VOCABULARY, SMALLEST_VOCABULARY
from lmsmith.tokenizers.word_piece import train_word_piece

ENOUGH_WHOLE = 0.9
"""A vocabulary is too small if less of the text's characters beyond ASCII are whole tokens."""

FEW = 0.05
"""Characters beyond ASCII matter if they are this share of all."""

LARGEST_ADVISED = 1 << 16


@dataclass(frozen=True)
class TokenizerConfig:
    """Settings of the tokenizer."""

    vocabulary_size: Annotated[int, msgspec.Meta(ge=SMALLEST_VOCABULARY, le=LARGEST_VOCABULARY)] = (
        4096
    )
    """Tokens, the control tokens and the 256 bytes included; fewer where the text gives less."""
    kind: Literal["bpe", "word_piece"] = "bpe"
    """``bpe``, byte-level, for models that write; ``word_piece`` for encoders, as BERT's."""
    lowercase: bool = True
    """With ``word_piece``: letters lose case and accents."""
    load: str = ""
    """A tokenizer to use instead of training one: a folder of lmsmith, Hugging Face, or GPT-1's or
    GPT-2's vocabulary and merges, or a GGUF file. `vocabulary_size` is then its own."""
    folder: str = field(default="", metadata=NOT_A_SETTING)
    """Relative paths begin at this folder, the recipe's."""

    def external_files(self) -> list[str]:
        return [str(path) for path in tokenizer_files(self.place())] if self.load else []

    def place(self) -> str:
        return beside(self.folder, self.load)


def run(config: TokenizerConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Train on `data/documents.jsonl` (or load), save, and measure on held-out text.

    Where the data names the shards of a finished corpus, theirs is the tokenizer.

    Returns:
        `vocabulary_size`; `compression` on the test documents (else the validation's, else the
        training ones); `whole_characters` where the training text has many beyond ASCII, with a
        warning if they are few.

    Raises:
        UserError: no documents, or the tokenizer to load is of no known kind.
    """
    training, corpus = inputs["data"] / "documents.jsonl", inputs["data"] / CORPUS_SHARDS_FILE
    if corpus.is_file():
        built: Any = read_json(corpus)
        tokenizer = load_any_tokenizer(str(inputs["data"] / built["tokenizer"]))
        out.progress.note("tokenizer: that of the corpus's shards (data.shards)")
    elif config.load:
        tokenizer = load_any_tokenizer(config.place())
    else:
        if not training.is_file():
            raise UserError(
                "tokenizer: the data stage left no text for training",
                "Lower the shares of data.splits.judge, test and validation, or add documents.",
            )
        out.progress.begin("training the tokenizer", 1, "vocabulary")
        if config.kind == "word_piece":
            size, lowercase = config.vocabulary_size, config.lowercase
            tokenizer = train_word_piece(_texts(training), size, lowercase=lowercase)
        else:
            tokenizer = Tokenizer.train(_texts(training), config.vocabulary_size)
        out.progress.update(1)
        if tokenizer.vocabulary_size < config.vocabulary_size:
            out.progress.say(
                f"tokenizer: the text gives {tokenizer.vocabulary_size} tokens, not "
                f"{config.vocabulary_size}; that is what is used"
            )
    tokenizer.save(out.path)
    candidates = (f"{name}documents.jsonl" for name in ("test_", "validation_", ""))
    measured = [path for name in candidates if (path := inputs["data"] / name).is_file()]
    figures = {"vocabulary_size": float(tokenizer.vocabulary_size)}
    if measured:
        figures |= compression(tokenizer, list(_texts(measured[0])))
    if training.is_file() and config.kind == "bpe":
        figures |= _whole_characters(tokenizer, config, training, out)
    out.progress.end()
    return figures


def _whole_characters(
    tokenizer: Tokenizer, config: TokenizerConfig, training: Path, out: StageFolder
) -> dict[str, float]:
    """Share of a text's characters beyond ASCII that are whole tokens; a warning if it is low."""
    every = Counter[str]()
    for text in _texts(training):
        every.update(text)
    counts = {each: count for each, count in every.items() if not each.isascii()}
    total = sum(counts.values())
    if total < FEW * sum(every.values()):
        return {}
    share = sum(counts[each] for each in tokens_of_one(tokenizer, list(counts))) / total
    if share < ENOUGH_WHOLE:
        if config.load:
            fix = "Load a tokenizer made for this language, or leave tokenizer.load out"
        else:
            fix = f"Set tokenizer.vocabulary_size to {sufficient_size(training, counts)} or more"
        out.progress.say(
            f"tokenizer: {100 * (1 - share):.0f} % of the text's characters beyond ASCII are split "
            f"into bytes, as a vocabulary of {tokenizer.vocabulary_size} has no tokens for them: "
            f"texts are longer, and a model learns them worse. {fix}"
        )
    return {"whole_characters": share}


def tokens_of_one(tokenizer: Tokenizer, characters: list[str]) -> list[str]:
    """The characters that are one token."""
    encoded = tokenizer.encode_batch(characters)
    return [each for each, ids in zip(characters, encoded, strict=True) if len(ids) == 1]


def sufficient_size(training: Path, counts: Mapping[str, int]) -> int:
    """The vocabulary size, in 256s, with which `ENOUGH_WHOLE` of these characters are whole.

    BPE adds tokens in the same order at any size, so one large vocabulary says at which size each
    character has its token. Characters that occur once never have one.
    """
    large = Tokenizer.train(_texts(training), LARGEST_ADVISED)
    whole = tokens_of_one(large, list(counts))
    ids = {each: large.encode(each)[0] for each in whole}
    wanted = ENOUGH_WHOLE * sum(counts.values())
    size, found = SMALLEST_VOCABULARY, 0
    for each in sorted(whole, key=lambda each: ids[each]):
        if found >= wanted:
            break
        size, found = ids[each] + 1, found + counts[each]
    return -(-size // 256) * 256


def compression(tokenizer: Tokenizer, texts: list[str]) -> dict[str, float]:
    """UTF-8 bytes per token, and tokens per character (better for Chinese: three bytes each)."""
    tokens = sum(map(len, tokenizer.encode_batch(texts)))
    return {
        "bytes_per_token": sum(len(text.encode()) for text in texts) / tokens,
        "tokens_per_character": tokens / sum(map(len, texts)),
    }


def _texts(path: Path) -> Iterator[str]:
    return (document.text for document in read_documents(path))
