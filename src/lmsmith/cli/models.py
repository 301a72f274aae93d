"""``lmsmith models``: the shapes that come with lmsmith, and what each costs."""

from __future__ import annotations

from typing import Any

from lmsmith.cli.output import print_json, table_console
from lmsmith.models.presets import PRESETS, Preset

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
"""Of one parameter, at each precision."""


def list_presets(json: bool = False) -> int:
    """List model shapes with their size, their cost to train, and what their cache takes.

    Bytes are of the parameters alone. A training step's operations are of matrix products, forward
    and backward, for one token at full context. The cache is bfloat16; banded layers keep their
    window of it.

    Args:
        json: Print one JSON object.
    """
    rows = {name: preset_figures(preset) for name, preset in PRESETS.items()}
    if json:
        print_json({"presets": rows})
        return 0
    print_presets(rows)
    return 0


def preset_figures(preset: Preset) -> dict[str, Any]:
    """What the table says of one shape."""
    config = preset.config
    return {
        "layers": config.layers,
        "width": config.width,
        "heads": config.heads,
        "key_value_heads": config.shared_heads,
        "head_width": config.width_per_head,
        "context": config.context,
        "vocabulary_size": config.vocabulary_size,
        "parameters": config.parameters,
        "bytes": {name: config.parameters * size for name, size in BYTES.items()},
        "training_flops_per_token": config.training_flops_per_token(),
        "cache_bytes_per_token": config.cache_bytes_per_token(),
        "cache_bytes_at_context": config.cache_bytes(config.context),
        "source": preset.source,
    }


def print_presets(rows: dict[str, dict[str, Any]]) -> None:
    """The table for people."""
    from rich.table import Table

    table = Table(
        caption="heads × head width; GB of parameters; FLOPs to train on a token at full context; "
        "bfloat16 cache of one token, and of a full context"
    )
    names = ["preset", "layers", "width", "heads", "context", "parameters"]
    names += [*BYTES, "FLOPs/token", "cache/token", "cache"]
    for name in names:
        table.add_column(name, justify="left" if name == "preset" else "right", no_wrap=True)
    for name, row in rows.items():
        sizes = row["bytes"]
        table.add_row(
            name,
            str(row["layers"]),
            f"{row['width']:,}",
            f"{row['heads']} × {row['head_width']}",
            f"{row['context']:,}",
            f"{row['parameters']:,}",
            *(f"{sizes[precision] / 1e9:,.2f} GB" for precision in BYTES),
            f"{row['training_flops_per_token']:.2e}",
            f"{row['cache_bytes_per_token']:,} B",
            f"{row['cache_bytes_at_context'] / 1e6:,.1f} MB",
        )
    table_console().print(table)
