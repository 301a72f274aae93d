"""Locally banded attention: a position sees the last ``window`` tokens, at a cost of T · window."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCKS_PER_WINDOW = 4
"""Queries are taken in blocks of window / 4: of the window + block keys that a block is given,
few are outside its queries' windows. Smaller blocks cost more calls than they save."""


def query_block(window: int) -> int:
    """Queries handled together."""
    return max(1, -(-window // BLOCKS_PER_WINDOW))


def block_columns(queries: int, keys: int, window: int) -> list[tuple[slice, slice]]:
    """Of each block of queries, its rows and the columns of the keys it is given.

    Args:
        queries: the last ``queries`` of the ``keys`` columns.
        keys: columns.
        window: tokens a query sees, itself included.
    """
    size, before = query_block(window), keys - queries
    reach = size * -(-(window - 1) // size)  # whole blocks, so that their borders are shared
    found = []
    for start in range(0, queries, size):
        end = min(queries, start + size)
        found.append((slice(start, end), slice(max(0, before + start - reach), before + end)))
    return found


def band(rows: slice, columns: slice, before: int, window: int, device: torch.device) -> Tensor:
    """True where a row's query, at column ``before + row``, sees a column; (rows, columns)."""
    places = torch.arange(before + rows.start, before + rows.stop, device=device)[:, None]
    seen = torch.arange(columns.start, columns.stop, device=device)[None]
    return (seen <= places) & (seen > places - window)


def band_biases(
    queries: int,
    keys: int,
    window: int,
    mask_bts: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
) -> list[Tensor]:
    """What `banded_attention` adds to the scores of each block of queries: 0 or −∞.

    Args:
        queries, keys: their number; the queries are the last of the keys' columns.
        window: tokens a query sees, itself included.
        mask_bts: True where a query may see a column, (batch, queries, keys); the band is taken
            of it. Causal if None.
        dtype: of the scores.
        device: of the biases, where there is no mask.

    Returns:
        One tensor a block, (batch or 1, 1, rows, columns).
    """
    made: dict[tuple[int, int, int], Tensor] = {}
    biases = []
    for rows, columns in block_columns(queries, keys, window):
        # Blocks whose rows and columns lie alike share one tensor.
        first = keys - queries + rows.start - columns.start
        shape = (rows.stop - rows.start, columns.stop - columns.start, first)
        if mask_bts is None and shape in made:
            biases.append(made[shape])
            continue
        seen = band(rows, columns, keys - queries, window, device)[None]
        if mask_bts is not None:
            seen = seen & mask_bts[:, rows, columns]
        bias = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        made[shape] = bias.masked_fill_(~seen, float("-inf"))[:, None]
        biases.append(made[shape])
    return biases


def banded_attention(
    query_bhtk: Tensor,
    key_bhsk: Tensor,
    value_bhsk: Tensor,
    biases: list[Tensor],
    window: int,
    dropout: float = 0.0,
) -> Tensor:
    """softmax(QKᵀ/√d_k + bias)V over the last ``window`` columns of each query (Child et al.
    2019, section 4.2; GPT-Neo's local attention).

    Args:
        query_bhtk: the last t of the s columns.
        key_bhsk, value_bhsk: keys and values.
        biases: `band_biases` of these lengths.
        window: tokens a query sees, itself included.
        dropout: probability, on the weights.

    Returns:
        (batch, heads, t, head_width).
    """
    blocks = block_columns(query_bhtk.shape[2], key_bhsk.shape[2], window)
    columns = [columns for _, columns in blocks]
    key_blocks, value_blocks = _overlapping(key_bhsk, columns), _overlapping(value_bhsk, columns)
    query_blocks = torch.split(query_bhtk, query_block(window), dim=2)
    mixed = [
        F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)
        for query, key, value, bias in zip(
            query_blocks, key_blocks, value_blocks, biases, strict=True
        )
    ]
    return torch.cat(mixed, dim=2)


def _overlapping(part_bhsk: Tensor, columns: list[slice]) -> list[Tensor]:
    """The slices of a tensor, made so that the gradient costs what the slices hold.

    The gradient of a plain slice is as large as the whole tensor, which makes T² / block of all
    of them. So the tensor is cut once where any slice begins or ends, and slices are joined.
    """
    edges = sorted({0, part_bhsk.shape[2]} | {c.start for c in columns} | {c.stop for c in columns})
    pieces = torch.split(
        part_bhsk, [end - start for start, end in itertools.pairwise(edges)], dim=2
    )
    place = {edge: index for index, edge in enumerate(edges)}
    return [torch.cat(pieces[place[c.start] : place[c.stop]], dim=2) for c in columns]
