"""Shapes without weights, made without PyTorch's compiler."""

from __future__ import annotations

import subprocess
import sys

from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import without_weights
from lmsmith.models.presets import PRESETS


def test_shapes_are_there_and_weights_are_not() -> None:
    config = PRESETS["gpt3-175b"].config
    with without_weights():
        decoder = Decoder(config)
    assert all(parameter.is_meta for parameter in decoder.parameters())
    assert sum(parameter.numel() for parameter in decoder.parameters()) == config.parameters


def test_the_compiler_is_not_imported() -> None:
    script = (
        "import sys; from lmsmith.models.decoder import Decoder\n"
        "from lmsmith.models.folder import without_weights\n"
        "from lmsmith.models.presets import PRESETS\n"
        "with without_weights(): Decoder(PRESETS['smollm2-135m'].config)\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
