"""Shapes without weights, made without PyTorch's compiler."""

from __future__ import annotations

import subprocess
import sys

from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import without_weights
from lmsmith.models.presets import find_preset


def test_shapes_are_there_and_weights_are_not() -> None:
    config = find_preset("gpt3-175b")
    with without_weights():
        decoder = Decoder(config)
    assert all(parameter.is_meta for parameter in decoder.parameters())
    assert sum(parameter.numel() for parameter in decoder.parameters()) == config.parameters


def test_the_compiler_is_not_imported() -> None:
    script = (
        "import sys; from lmsmith.models.decoder import Decoder\n"
        "from lmsmith.models.folder import without_weights\n"
        "from lmsmith.models.presets import find_preset\n"
        "with without_weights(): Decoder(find_preset('smollm2-135m'))\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
