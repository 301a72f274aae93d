"""A 4-bit GGUF file as large as the models that people run, with random weights.

Memory and speed depend on the sizes alone. The file has the tokenizer and the chat template of the
one that it is made after, and the shape of TinyLlama-1.1B (Zhang et al. 2024).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

LAYERS, WIDTH, INNER, HEADS, KV_HEADS = 22, 2048, 5632, 32, 4
BLOCK = 32
"""Numbers of a block of Q4_1 and of Q8_0."""


def larger_gguf(source: Path, folder: Path) -> Path:
    """Write ``larger.gguf``: matrices in Q4_1, the embedding in Q8_0, as in the source."""
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter

    path = folder / "larger.gguf"
    reader, writer = GGUFReader(source), GGUFWriter(path, "llama")
    shape = {
        "llama.block_count": LAYERS,
        "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": INNER,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.rope.dimension_count": WIDTH // HEADS,
    }
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kinds = (field.types[0], field.types[-1] if len(field.types) > 1 else None)
        writer.add_key_value(name, shape.get(name, field.contents()), *kinds)
    chance = np.random.default_rng(0)
    vocabulary = len(reader.fields["tokenizer.ggml.tokens"].data)
    four, eight = GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q8_0
    writer.add_tensor(
        "token_embd.weight", blocks(chance, vocabulary, WIDTH, (2.0**-12,), BLOCK), raw_dtype=eight
    )
    kv = KV_HEADS * WIDTH // HEADS
    matrices = {
        "attn_q": (WIDTH, WIDTH),
        "attn_k": (kv, WIDTH),
        "attn_v": (kv, WIDTH),
        "attn_output": (WIDTH, WIDTH),
        "ffn_gate": (INNER, WIDTH),
        "ffn_up": (INNER, WIDTH),
        "ffn_down": (WIDTH, INNER),
    }
    for layer in range(LAYERS):
        for name, (rows, columns) in matrices.items():
            weights = blocks(chance, rows, columns, (2.0**-8, -7.5 * 2.0**-8), BLOCK // 2)
            writer.add_tensor(f"blk.{layer}.{name}.weight", weights, raw_dtype=four)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(WIDTH, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks(
    chance: Any, rows: int, columns: int, numbers: tuple[float, ...], size: int
) -> npt.NDArray[np.uint8]:
    """Rows of blocks: the numbers in float16 (scale, minimum), and ``size`` random bytes."""
    found = chance.integers(0, 256, (rows, columns // BLOCK, 2 * len(numbers) + size), np.uint8)
    found[..., : 2 * len(numbers)] = np.frombuffer(
        np.array(numbers, np.float16).tobytes(), np.uint8
    )
    result: npt.NDArray[np.uint8] = found.reshape(rows, -1)
    return result
