"""Gates: what is compared with what, and which figures pass."""

from __future__ import annotations

from pathlib import Path

import torch

from improve.tiny_round import make_model
from lmsmith.core.files import write_jsonl
from lmsmith.core.progress import QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.improve import gates
from lmsmith.improve.gates import GatesConfig
from lmsmith.models.folder import load_decoder, load_tokenizer, save_model
from lmsmith.runs.stage_folder import StageFolder


def changed_model(folder: Path, source: str, seed: int) -> str:
    """Another model of the same shape, saved as a stage saves it; the stage's folder."""
    decoder = load_decoder(Path(source))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in decoder.parameters():
            each.add_(torch.randn(each.shape, generator=generator) * 0.3 * each.std())
    save_model(folder / "model", decoder, load_tokenizer(Path(source)), {})
    return str(folder)


def test_the_candidate_is_compared_with_the_current_version(tmp_path: Path, seed: int) -> None:
    """Training began with one model, people meet another: it is the other that counts."""
    base = make_model(tmp_path / "base/model")
    candidate = changed_model(tmp_path / "sft", base, seed)
    prompts = [{"messages": [{"role": "user", "content": f"Where is cat {n}?"}]} for n in range(12)]
    write_jsonl(tmp_path / "data/test.jsonl", prompts)
    write_jsonl(tmp_path / "data/held_out/test.jsonl", [])
    inputs = {name: tmp_path / name for name in ("base", "sft", "data")}

    def kl_against(current: str) -> float:
        place = StageFolder(
            tmp_path / f"gates{bool(current)}", seed, MachineConfig(), QuietProgress()
        )
        config = GatesConfig(max_new_tokens=8, min_prompts=8, current=current)
        assert config.external_files() == ([current] if current else [])
        return gates.run(config, inputs, place)["kl"]

    assert kl_against("") > 0.1
    assert kl_against(f"{candidate}/model") == 0
