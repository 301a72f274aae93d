"""A tokenizer from wherever it is: lmsmith's folder, Hugging Face's, GPT-1's and GPT-2's, GGUF."""

from __future__ import annotations

from pathlib import Path

from lmsmith.core.errors import UserError
from lmsmith.tokenizers.bpe import TOKENIZER_FILE
from lmsmith.tokenizers.chat_format import CHAT_FILE
from lmsmith.tokenizers.gguf_vocabulary import load_gguf_tokenizer
from lmsmith.tokenizers.gpt1 import WORD_END, load_gpt1
from lmsmith.tokenizers.gpt2 import load_gpt2
from lmsmith.tokenizers.hugging_face import CONFIG_FILE, TEMPLATE_FILE, load_hugging_face
from lmsmith.tokenizers.tokenizer import Tokenizer

_PAIRS = (
    ("encoder_bpe_40000.json", "vocab_40000.bpe"),
    ("encoder.json", "vocab.bpe"),
    ("vocab.json", "merges.txt"),
)


def load_any_tokenizer(path: Path | str) -> Tokenizer:
    """Read a tokenizer of any kind; see the modules of the kinds.

    Args:
        path: a folder that lmsmith wrote (with ``chat.json``), a Hugging Face folder, a folder
            with GPT-1's or GPT-2's vocabulary and merges, or a GGUF file.

    Raises:
        UserError: it is none of these, or damaged.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".gguf":
        return load_gguf_tokenizer(path)
    if not path.is_dir() or (path / CHAT_FILE).is_file():
        return Tokenizer.load(path)
    if (path / TOKENIZER_FILE).is_file():
        return load_hugging_face(path)
    pair = next((p for p in _PAIRS if all((path / name).is_file() for name in p)), None)
    if pair is None:
        raise UserError(
            f"{path} has no {TOKENIZER_FILE}, and no vocabulary with merges",
            "name a model folder, a Hugging Face folder or a GGUF file",
        )
    merges = (path / pair[1]).read_text(encoding="utf-8", errors="replace")
    return load_gpt1(path) if WORD_END in merges else load_gpt2(path)


def tokenizer_files(path: Path | str) -> list[Path]:
    """The files that `load_any_tokenizer` reads there."""
    path = Path(path)
    if path.is_file():
        return [path]
    names = [TOKENIZER_FILE, CHAT_FILE]
    if path.is_dir() and not (path / CHAT_FILE).is_file():
        others = [CONFIG_FILE, TEMPLATE_FILE, "special_tokens_map.json"]
        others += ["generation_config.json", "config.json"]
        pairs = [name for pair in _PAIRS for name in pair]
        candidates = [TOKENIZER_FILE, *others, *pairs]
        names = [name for name in candidates if (path / name).is_file()] or names
    return [path / name for name in names]
