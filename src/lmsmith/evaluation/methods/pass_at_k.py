"""pass@k: how likely one of k samples passes a problem's tests (Chen et al. 2021, section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence

AT = (1, 10, 100)
"""The k that are measured, as far as there are samples."""


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """1 − C(n − c, k) / C(n, k), the unbiased estimate from n samples of which c passed.

    As a product, which neither overflows nor loses digits.

    Raises:
        ValueError: fewer samples than k, or more passed than there are.
    """
    if not (0 <= passed <= samples and 1 <= k <= samples):
        raise ValueError(f"pass@{k} of {samples} samples, {passed} passed")
    if samples - passed < k:
        return 1.0
    missed = 1.0
    for number in range(samples - passed + 1, samples + 1):
        missed *= 1.0 - k / number
    return 1.0 - missed


def measured_at(samples: int) -> Sequence[int]:
    """The k that so many samples allow."""
    return [k for k in AT if k <= samples]
