"""What multiplying a quantised file at its own bits costs: its perplexity on WikiText-2 beside that
of the same weights as float32 numbers.

Windows of the test text are read by the engine's own decoder, with the C++ kernels for the packed
matrices and PyTorch in float32 for the numbers. The rise is the ratio of both perplexities.
"""

from __future__ import annotations

import json as json_module
import sys
from pathlib import Path
from typing import Annotated

import tyro
from int8_perplexity import find_text, perplexity

from lmsmith.catalogue.reading import read_model
from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.training.machine import prepare_process

Count = Annotated[int, tyro.conf.arg(metavar="N")]
MOST = 0.001


def main(
    gguf: str = "smollm2-135m",
    text: Path | None = None,
    tokens: Count = 20_480,
    window: Count = 512,
    json: bool = False,
) -> int:
    """Perplexity of packed and dequantised weights; the exit code is 1 if it rises by 0.1 %.

    Example: python benchmarks/packed_perplexity.py --gguf SmolLM2-135M-Instruct.Q4_1.gguf

    Args:
        gguf: A quantised GGUF file, or the registered name of one.
        text: The text; WikiText-2's test text beside the repository, or in LMSMITH_TEST_DATA, if
            it is left out.
        tokens: Tokens read, from its beginning.
        window: Tokens read together; nothing before a window is seen.
        json: Print one JSON object.
    """
    text = text or find_text()
    machine = prepare_process(MachineConfig(precision="fp32"))
    read = read_model(gguf, packed=True)
    ids = read.tokenizer.encode(text.read_text(encoding="utf-8")[: 8 * tokens])[:tokens]
    packed = InferenceDecoder(read.decoder)
    if not packed.packings:
        sys.exit(f"{gguf} is not quantised in a type that is multiplied as it is")
    own = perplexity(packed, ids, window)
    numbers = perplexity(InferenceDecoder(packed.decoder, machine), ids, window)
    rise = own / numbers - 1
    result = {"file": own, "float32": numbers, "rise": rise, "types": packed.packings}
    if json:
        print(json_module.dumps(result | {"tokens": len(ids)}))
    else:
        types = ", ".join(packed.packings)
        print(f"{types} {own:.4f}, float32 {numbers:.4f}: {rise:+.3%}, {len(ids)} tokens")
    return 0 if rise < MOST else 1


if __name__ == "__main__":
    sys.exit(tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,)))
