"""Text that UTF-8 can hold, and the cleaning that GPT-1's tokenizer expects."""

from __future__ import annotations

import re

from lmsmith.core.errors import UserError

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def encodable(text: str) -> str:
    """`text` with each lone surrogate, which UTF-8 cannot hold, replaced by U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return _LONE_SURROGATE.sub("\ufffd", text)
    return text


def ftfy_cleaned(text: str) -> str:
    """`text` with broken encodings mended and quotation marks straightened, as GPT-1 read it.

    Raises:
        UserError: the package ftfy is not installed.
    """
    try:
        import ftfy
    except ImportError as error:
        raise UserError(
            "this tokenizer cleans text with ftfy, which is not installed",
            'install it: pip install "lmsmith[corpus]"',
        ) from error
    return ftfy.fix_text(text)
