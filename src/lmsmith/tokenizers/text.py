"""The cleaning that GPT-1's tokenizer expects."""

from __future__ import annotations

from lmsmith.core.errors import UserError


def ftfy_cleaned(text: str) -> str:
    """`text` with broken encodings fixed and quotation marks straightened, as GPT-1 read it.

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
