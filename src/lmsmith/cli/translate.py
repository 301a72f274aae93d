"""``lmsmith translate``: sentences in another language."""

from __future__ import annotations

from pathlib import Path

from lmsmith.cli.output import input_lines, print_json
from lmsmith.core.errors import UserError
from lmsmith.core.terminal import visible
from lmsmith.options import Precision, documented


@documented
def translate(
    model: str,
    text: str = "",
    *,
    input: Path | None = None,
    beam: int = 4,
    length_penalty: float = 0.6,
    attention: bool = False,
    precision: Precision = "auto",
    threads: int = 0,
    json: bool = False,
) -> None:
    """Translate a sentence, or each line of a file, by beam search.

    Args:
        model: A run of lmsmith run translate, a model folder, or a Marian folder.
        text: The sentence; else lines are read.
        input: A text file, a sentence a line; standard input by default.
        beam: Beams that are kept; 1 takes the likeliest token every time.
        length_penalty: Above 0 longer translations are preferred.
        attention: Let the JSON object have the attention between the sentences, the last layer's
            mean over its heads.
    """
    from lmsmith.core.recipe import MachineConfig
    from lmsmith.training.machine import prepare_process
    from lmsmith.translation import translate as translated

    if text and input:
        raise UserError("a text and --input: not both", "leave one out")
    prepare_process(MachineConfig(precision=precision, threads=threads, deterministic=False))
    texts = [text] if text else [line for _, line in input_lines(input)]
    found = translated(
        model,
        texts,
        beam=beam,
        length_penalty=length_penalty,
        attention=attention,
        precision=precision,
        threads=threads,
    )
    if json:
        print_json(found.as_dict())
        return
    for each in found.translations:
        print(visible(each.text))
