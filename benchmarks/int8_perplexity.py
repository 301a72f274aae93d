"""What int8 weights cost: SmolLM2's perplexity on WikiText-2 with bf16 weights and with int8 ones.

Windows of the test text are read by the engine's own decoder, so that the kernels are measured
too. The rise is the ratio of both perplexities on the same tokens.
"""

from __future__ import annotations

import json as json_module
import math
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

import lmsmith
from lmsmith.core.recipe import MachineConfig
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.training.machine import prepare_process

WIKITEXT = "lm/wikitext2.test.txt"
Count = Annotated[int, tyro.conf.arg(metavar="N")]


def main(
    gguf: str = "smollm2-135m",
    text: Path | None = None,
    tokens: Count = 20_480,
    window: Count = 512,
    json: bool = False,
) -> int:
    """Perplexity with bf16 and int8 weights; the exit code is 1 if it rises by 1 % or more.

    Example: python benchmarks/int8_perplexity.py --text wikitext2.test.txt --json

    Args:
        gguf: The model: a file, or a registered name (`lmsmith pull smollm2-135m`).
        text: The text; WikiText-2's test text beside the repository, or in LMSMITH_TEST_DATA, if
            it is left out.
        tokens: Tokens read, from its beginning.
        window: Tokens read together; nothing before a window is seen.
        json: Print one JSON object.
    """
    text = text or find_text()
    machine = prepare_process(MachineConfig(precision="bf16"))
    loaded = lmsmith.load(gguf)
    ids = loaded.tokenizer.encode(text.read_text(encoding="utf-8")[: 8 * tokens])[:tokens]
    found: dict[str, float] = {}
    kinds: list[Any] = ["model", "int8"]
    for kind in kinds:
        model = InferenceDecoder(loaded.decoder, machine, weights=kind)
        found[kind] = perplexity(model, ids, window)
    rise = found["int8"] / found["model"] - 1
    result = {"bf16": found["model"], "int8": found["int8"], "rise": rise, "tokens": len(ids)}
    if json:
        print(json_module.dumps(result))
    else:
        print(
            f"bf16 {found['model']:.3f}, int8 {found['int8']:.3f}: {rise:+.2%}, {len(ids)} tokens"
        )
    return 0 if rise < 0.01 else 1


def find_text() -> Path:
    """The public test data, where the tests look for it."""
    roots = [
        Path(os.environ.get("LMSMITH_TEST_DATA", "")),
        Path(__file__).parents[2] / "shared/data",
    ]
    found = [root / WIKITEXT for root in roots if (root / WIKITEXT).is_file()]
    return found[0] if found else sys.exit(f"{WIKITEXT} is not here: name it with --text")


def perplexity(model: InferenceDecoder, ids: list[int], window: int) -> float:
    """exp of the mean −log p of every token but each window's first."""
    total, count = 0.0, 0
    for start in range(0, len(ids) - 1, window):
        part = ids[start : start + window]
        if len(part) < 2:
            break
        cache = model.new_cache(1, window)
        hidden = model.read([(cache.open(), part[:-1])], cache)
        log_probs = model.logits(hidden).log_softmax(-1)
        targets = torch.tensor(part[1:])[:, None]
        total -= float(log_probs.gather(1, targets).double().sum())
        count += len(part) - 1
    return math.exp(total / count)


if __name__ == "__main__":
    sys.exit(tyro.cli(main, config=(tyro.conf.FlagCreatePairsOff,)))
