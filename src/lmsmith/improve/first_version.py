"""The first version of a model: a copy of it, with its reward model and its corpus."""

from __future__ import annotations

import shutil
from pathlib import Path

from lmsmith.catalogue import versions
from lmsmith.catalogue.reading import read_model
from lmsmith.catalogue.registry import now
from lmsmith.catalogue.resolve import Source, card_of_sampling, resolve
from lmsmith.catalogue.versions import Version
from lmsmith.core.errors import UserError
from lmsmith.core.files import atomic_folder
from lmsmith.corpus.batches import MIXTURE_FILE, SHARDS_FOLDER
from lmsmith.models.folder import load_scalar_model, load_tokenizer, save_model
from lmsmith.runs.integrity import check_inputs


def reward_of(source: Source) -> Path | None:
    """The reward model of the run that a model is of; None if there is none."""
    found = source.path.parent.parent / "reward/model"
    return found if source.format == "lmsmith" and (found / "config.json").is_file() else None


def first_version(word: str, name: str, by: str) -> Version:
    """Copy a model, with its reward model and its corpus where it has them, as version 1.

    Raises:
        UserError: there are later versions, so that their lineage is lost.
    """
    if (last := versions.next_number(name) - 1) > 1:
        raise UserError(
            f"{versions.folder_of(name)}: holds versions up to {last}, and their "
            f"{versions.LINEAGE_FILE} is gone",
            "put a copy of the file back, or give another --name",
        )
    source = resolve(word)
    read = read_model(source.path)
    run = source.path.parent.parent if source.format == "lmsmith" else None
    folder = versions.folder_of(name) / versions.NEXT
    with versions.changing(name):
        with atomic_folder(folder) as partial:
            card = {**read.card, **card_of_sampling(source), "source": word}
            save_model(partial / "model", read.decoder, read.tokenizer, card)
            if (reward := reward_of(source)) is not None:
                tokenizer = load_tokenizer(reward)
                save_model(partial / "reward/model", load_scalar_model(reward), tokenizer, {})
            corpus = run / "pretrain" if run else None
            if corpus is not None and (corpus / MIXTURE_FILE).is_file():
                check_inputs(corpus, (MIXTURE_FILE, f"{SHARDS_FOLDER}/*"))
                shutil.copytree(corpus / SHARDS_FOLDER, partial / "pretrain" / SHARDS_FOLDER)
                shutil.copyfile(corpus / MIXTURE_FILE, partial / "pretrain" / MIXTURE_FILE)
            made = Version(name, 1, "model", versions.hash_model(partial / "model"), word, now())
            versions.write_version(partial, made)
        shutil.rmtree(made.folder, ignore_errors=True)  # of a kill before the lineage was written
        versions.put_in_place(made)
        versions.found_lineage(made, by or "lmsmith improve")
    return made
