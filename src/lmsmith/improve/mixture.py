"""Stage `pretrain` of a round: the text that PPO-ptx mixes in, so that alignment forgets less.

It is the model's own pretraining corpus where the first version came with it; else the
demonstrations take its place, as tokens of whole dialogues.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lmsmith.core.config import NOT_A_SETTING
from lmsmith.core.files import atomic_folder, write_json
from lmsmith.corpus.batches import MIXTURE_FILE, SHARDS_FOLDER, read_mixture
from lmsmith.corpus.rows import read_conversations, rows_of_split
from lmsmith.corpus.shards import write_shards
from lmsmith.models.folder import load_tokenizer, read_model_config
from lmsmith.prompts.sft_rows import conversation_windows
from lmsmith.runs.integrity import check_inputs
from lmsmith.runs.stage_folder import StageFolder


@dataclass(frozen=True)
class MixtureConfig:
    """Where the text comes from; there is nothing to choose."""

    corpus: str = field(default="", metadata=NOT_A_SETTING)
    """Folder of the first version's corpus; the demonstrations if empty."""

    def external_files(self) -> list[str]:
        """The corpus' files."""
        folder = Path(self.corpus)
        return (
            [str(path) for path in sorted(folder.rglob("*")) if path.is_file()]
            if self.corpus
            else []
        )


def run(config: MixtureConfig, inputs: Mapping[str, Path], out: StageFolder) -> dict[str, float]:
    """Write ``shards/`` and ``mixture.json``."""
    if config.corpus:
        check_inputs(Path(config.corpus), (MIXTURE_FILE, f"{SHARDS_FOLDER}/*"))
        with atomic_folder(out / SHARDS_FOLDER) as partial:
            shutil.copytree(Path(config.corpus) / SHARDS_FOLDER, partial, dirs_exist_ok=True)
        shutil.copyfile(Path(config.corpus) / MIXTURE_FILE, out / MIXTURE_FILE)
        sources, _ = read_mixture(out.path)
        return {"tokens": float(sum(each.total_tokens for each in sources))}
    model = inputs["base"] / "model"
    tokenizer, context = load_tokenizer(model), read_model_config(model)[1].context
    path = inputs["data"] / "demonstrations.jsonl"
    windows = [
        tokens
        for each in rows_of_split(read_conversations, path)
        for tokens, _ in conversation_windows(tokenizer, each.messages, context, 0)
    ]
    folder = out / SHARDS_FOLDER / "000"
    shards = write_shards(
        folder, windows, tokenizer.end_of_text, tokenizer.vocabulary_size, tokenizer.document_start
    )
    write_json(out / MIXTURE_FILE, [1.0])
    return {"tokens": float(shards.total_tokens)}
