"""A tiny world for the stages that learn from preferences: conversations, tokenizer, models."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from lmsmith.core.files import write_jsonl
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.models import stack
from lmsmith.models.config import ModelConfig
from lmsmith.models.decoder import Decoder
from lmsmith.models.folder import save_model
from lmsmith.runs.stage_folder import StageFolder
from lmsmith.tokenizers import Tokenizer

torch.set_num_threads(1)  # models so small only lose by sharing the work

WORDS = ["yes", "no", "maybe", "sure", "I", "you", "we", "think", "like", "tea", "rain", "what"]


def sentence(source: random.Random) -> str:
    return " ".join(source.choice(WORDS) for _ in range(source.randint(2, 7)))


def conversations(count: int, seed: int, name: str) -> list[dict[str, object]]:
    """Rows of conversations of random words, some with a system message."""
    source = random.Random(seed)
    rows: list[dict[str, object]] = []
    for number in range(count):
        messages = [{"role": "system", "content": "be kind"}] if number % 5 == 0 else []
        for turn in range(source.randint(4, 9)):
            role = ("user", "assistant")[turn % 2]
            messages.append({"role": role, "content": sentence(source)})
        rows.append({"messages": messages, "id": f"{name}{number}"})
    return rows


def make_tokenizer() -> Tokenizer:
    source = random.Random(0)
    return Tokenizer.train([sentence(source) for _ in range(200)], 300)


def make_decoder(tokenizer: Tokenizer, seed: int = 0, context: int = 64) -> Decoder:
    decoder = Decoder(ModelConfig(2, 16, 2, context, tokenizer.vocabulary_size))
    decoder.initialise(torch.Generator().manual_seed(seed))
    return decoder


def ending_decoder(tokenizer: Tokenizer, seed: int = 0, context: int = 64) -> Decoder:
    """A decoder with random weights that likes to end its turn: about one token in eight."""
    decoder = make_decoder(tokenizer, seed, context)
    # The final norm's bias is a constant direction of the hidden state: along the end of turn's
    # embedding it raises that token's logit alone.
    direction = torch.randn(16, generator=torch.Generator().manual_seed(seed + 1))
    embedding = decoder.token_embedding.weight.data
    embedding -= embedding @ direction[:, None] * direction / direction.square().sum()
    embedding[tokenizer.end_of_turn] += direction / direction.norm()
    decoder.final_norm.bias.data = 3.7 * direction / direction.norm()
    return decoder


def write_models(folder: Path, tokenizer: Tokenizer, **decoders: Decoder) -> dict[str, Path]:
    """Stage folders with a ``model/`` each, by name."""
    for name, decoder in decoders.items():
        save_model(folder / name / "model", decoder, tokenizer, {})
    return {name: folder / name for name in decoders}


def write_data(folder: Path, **splits: list[dict[str, object]]) -> Path:
    """A data stage's folder with these files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


def stage_folder(path: Path, seed: int = 7) -> StageFolder:
    path.mkdir(parents=True, exist_ok=True)
    return StageFolder(path, seed, MachineConfig(precision="fp32"), QuietProgress())


def count_recomputed(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The blocks whose activations are computed again in the backward pass, as they are."""
    blocks: list[object] = []

    def counted(block: object, *given: object, **settings: object) -> object:
        blocks.append(block)
        return checkpoint(block, *given, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(stack, "checkpoint", counted)
    return blocks
