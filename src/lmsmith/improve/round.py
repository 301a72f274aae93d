"""One round of the loop: judgements are frozen, stages run, gates decide, a version is recorded.

A round works in the folder ``next`` beside the versions, as a run of the stages below. Whatever
ends it, the same command goes on; the last step moves the folder to the version's number.
"""

from __future__ import annotations

import contextlib
import shutil
import unicodedata
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import msgspec

from lmsmith.catalogue import versions
from lmsmith.catalogue.reading import read_model
from lmsmith.catalogue.registry import check_name, now
from lmsmith.catalogue.resolve import resolve
from lmsmith.catalogue.versions import Gate, Learnt, Version
from lmsmith.core.errors import UserError, needs_extra
from lmsmith.core.files import atomic_folder, fingerprint, read_json, write_json
from lmsmith.core.progress import QuietProgress, RunProgress
from lmsmith.core.recipe import Recipe, load_recipe
from lmsmith.core.settings import Setting, describe_settings
from lmsmith.corpus.batches import MIXTURE_FILE, SHARDS_FOLDER
from lmsmith.corpus.judgements import (
    DEMONSTRATED,
    RANKED,
    Collected,
    Judgement,
    read_judgements,
)
from lmsmith.improve.gates import GATES_FILE
from lmsmith.improve.snapshot import (
    SIDES_FILE,
    SNAPSHOT_FILE,
    Side,
    SnapshotConfig,
    divide,
    freeze,
    known_of,
    people_of,
    read_frozen,
    read_sides,
)
from lmsmith.improve.summary import LEAST, Summary, summarise
from lmsmith.models.adapters import AdapterConfig
from lmsmith.models.config import ModelConfig
from lmsmith.models.folder import load_scalar_model, load_tokenizer, read_model_config, save_model
from lmsmith.report.version.page import build_version_page
from lmsmith.runs.locking import locked
from lmsmith.runs.records import read_record
from lmsmith.stages.pipeline import Stage, run_recipe

RECIPE = Path(__file__).with_name("round.toml")
"""The round that is run where no recipe is named."""

ROUND_FILE, FROZEN = "round.json", "frozen"
ANNOUNCED = "announced.json"
"""Written when a version's trial has begun, the last act of a round."""

ADAPTERS_FROM = 60_000_000
"""Parameters from which a model is trained by adapters, unless the recipe says otherwise."""
ADAPTER_RANK = 16

_MODEL = ("model/*",)

ROUND: tuple[Stage, ...] = (
    Stage("data", "lmsmith.improve.snapshot", "SnapshotConfig"),
    Stage("base", "lmsmith.stages.base", "BaseConfig", format=2),
    Stage(
        "pretrain",
        "lmsmith.improve.mixture",
        "MixtureConfig",
        needs={"data": "data", "base": "base"},
        reads={"data": ("demonstrations.jsonl",), "base": _MODEL},
    ),
    Stage(
        "sft",
        "lmsmith.stages.sft",
        "SFTConfig",
        needs={"data": "data", "base": "base"},
        reads={"data": ("demonstrations.jsonl", "validation.jsonl"), "base": _MODEL},
    ),
    Stage("previous_reward", "lmsmith.improve.previous_reward", "PreviousRewardConfig"),
    Stage(
        "reward",
        "lmsmith.improve.reward",
        "RewardConfig",
        needs={"data": "data", "base": ("sft", "base")},
        optional={"start": "previous_reward"},
        reads={"data": ("reward/*",), "base": _MODEL, "start": _MODEL},
    ),
    Stage(
        "ppo",
        "lmsmith.stages.ppo",
        "PPOConfig",
        needs={"data": "data", "policy": ("sft", "base"), "reward": "reward"},
        optional={"pretrain": "pretrain"},
        reads={
            "data": ("prompts.jsonl",),
            "policy": _MODEL,
            "reward": _MODEL,
            "pretrain": ("shards/*", "mixture.json"),
        },
    ),
    Stage(
        "judge",
        "lmsmith.improve.reward",
        "RewardConfig",
        needs={"data": "data", "base": "base"},
        reads={"data": ("judge/*",), "base": _MODEL},
    ),
    Stage(
        "gates",
        "lmsmith.improve.gates",
        "GatesConfig",
        needs={"data": "data", "base": "base"},
        optional={name: name for name in ("sft", "reward", "ppo", "judge")},
        reads={
            "data": ("test.jsonl", "held_out/*"),
            **dict.fromkeys(("base", "sft", "reward", "ppo", "judge"), _MODEL),
        },
    ),
)
"""The stages of a round; what has nothing to learn from is left out."""


@dataclass(frozen=True)
class Sources:
    """Where judgements are read.

    Attributes:
        database: of the server, a file or a URL; its own if both are empty.
        data: files or folders in the formats of ``lmsmith feedback export``.
    """

    database: str = ""
    data: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join(self.data) or self.database or "the server's database"

    def read(self) -> Collected:
        """All judgements, whoever keeps them."""
        if self.data:
            found: dict[str, Judgement] = {}
            for each in read_judgements(self.data):
                if found.setdefault(each.id, each) != each:  # another file counts its rows too
                    name = f"{each.id}-{fingerprint(msgspec.to_builtins(each))}"
                    found[name] = msgspec.structs.replace(each, id=name)
            return Collected(list(found.values()), {}, 0, 0, {})
        with needs_extra("serve"):
            from lmsmith.feedback.collect import collect
            from lmsmith.feedback.store import open_store
        with open_store(self.database) as store:
            return collect(store)

    def people(self) -> set[str]:
        """Ids of everybody who is in the database."""
        with needs_extra("serve"):
            from lmsmith.feedback.people import People
            from lmsmith.feedback.store import open_store
        with open_store(self.database) as store:
            return {each.id for each in People(store).all()}

    def ids_of(self, words: Sequence[str], learnt: Container[str] = ()) -> tuple[str, ...]:
        """Ids of people, each named by id or name; of files, the names that these give.

        Args:
            words: names and ids.
            learnt: ids that versions were made with, of people who may be deleted.

        Raises:
            UserError: nobody of that name judged or asked.
        """
        if not words:
            return ()
        found = self.read()
        ids = {person for each in found.judgements for person in each.people}
        named = {_plain(name): person for person, name in found.names.items()}
        chosen = []
        for word in words:
            person = word if word in ids or word in learnt else named.get(_plain(word))
            if person is None:
                some = ", ".join(sorted(found.names.get(each, each) for each in ids)[:20])
                raise UserError(
                    f"--exclude {word}: nobody of that name or id judged or asked",
                    f"these did: {some}" if some else "there is nobody to exclude",
                )
            chosen.append(person)
        return tuple(dict.fromkeys(chosen))


def _plain(name: str) -> str:
    """A name without regard to the width of letters, capitals and spaces."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


class Round(msgspec.Struct, frozen=True):
    """What a round was begun with: it goes on with nothing else.

    Attributes:
        parent: the version that it starts from.
        began: ISO 8601, UTC.
        recipe: the name of its recipe.
        chosen: a fingerprint of recipe, overrides and sources.
    """

    name: str
    parent: int
    began: str
    recipe: str
    chosen: str


@dataclass(frozen=True)
class Prospect:
    """What a round would learn from.

    Attributes:
        name: of the model's versions.
        parent: the version it would start from; 0 where there is none yet.
        summary: of the judgements.
        stages: that would run.
        names: id of a person → name, where they are known.
    """

    name: str
    parent: int
    summary: Summary
    stages: tuple[str, ...]
    names: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "name": self.name,
            "parent": self.parent,
            "stages": list(self.stages),
            **self.summary.as_dict(),
        }


def name_of(word: str, name: str = "") -> str:
    """What the versions of a model are called: as asked, or after the model's name or folder."""
    if name:
        return name
    bare = versions.split_version(word)[0]
    return bare if versions.find(bare) else resolve(word).name.rstrip("/").rpartition("/")[2]


def prospect(word: str, sources: Sources, recipe: Recipe, name: str = "") -> Prospect:
    """What a round would learn from, without beginning it."""
    name = name_of(word, name)
    parent = _parent(name, recipe) if versions.find(name) else None
    earlier = read_sides(_ledger(name))
    found = sources.read()
    summary = summarise(
        found.judgements,
        known_of(found.judgements, earlier),
        cap=_data(recipe).person_cap,
        regenerations=found.regenerations,
        edits=found.edits,
    )
    stages = _stages(recipe, found.judgements, earlier)
    return Prospect(name, parent.number if parent else 0, summary, stages, found.names)


def _data(recipe: Recipe) -> SnapshotConfig:
    return cast(SnapshotConfig, recipe.stages["data"])


def _parent(name: str, recipe: Recipe) -> Version:
    """The promoted version, or its nearest ancestor that nobody who is excluded had a part in."""
    return versions.untouched(versions.promoted(name), _data(recipe).exclude)


def round_recipe(path: str = "", overrides: Sequence[str] = ()) -> Recipe:
    """Read and check the recipe of a round.

    Raises:
        UserError: no such file, or the list of all problems in it.
    """
    given = ("base", "pretrain", "previous_reward")  # by the round; there is nothing to choose
    types = {stage.name: stage.config_type() for stage in ROUND if stage.name not in given}
    recipe = load_recipe(path or str(RECIPE), overrides, types)
    added = {stage.name: stage.config_type()() for stage in ROUND if stage.name in given}
    return replace(recipe, stages=recipe.stages | added)


def learnt_people() -> set[str]:
    """Ids of everybody with whose words a version was made."""
    found = (each for name in versions.names() for each in versions.versions(name))
    return {person for each in found for person in each.learnt.people}


def without(recipe: Recipe, people: Sequence[str]) -> Recipe:
    """The recipe with more people excluded, by their ids."""
    if not people:
        return recipe
    data = _data(recipe)
    excluded = tuple(dict.fromkeys((*data.exclude, *people)))
    return replace(recipe, stages=recipe.stages | {"data": replace(data, exclude=excluded)})


def round_settings() -> list[Setting]:
    """Every setting of a round, under ``improve.``, with the values of the shipped recipe."""
    recipe = round_recipe()
    found: list[Setting] = []
    for stage in ROUND:
        defaults = recipe.stages[stage.name]
        found += describe_settings(stage.config_type(), f"improve.{stage.name}", defaults)
    return found


def improve(
    word: str,
    sources: Sources,
    recipe: Recipe,
    *,
    name: str = "",
    by: str = "",
    force: bool = False,
    restart: bool = False,
    share: float | None = None,
    progress: RunProgress | None = None,
) -> Version:
    """Make the next version of a model from what people judged; it is not promoted here.

    Killed at any moment, the same call goes on: also after the version is made, until its trial
    has begun.

    Args:
        word: a name that has versions, or any model that `resolve` knows: its first version.
        sources: the judgements.
        recipe: of `round_recipe`.
        name: of the versions; after the model if empty.
        by: who began the lineage.
        force: go on with too little.
        restart: drop a round that was begun with other judgements or settings.
        share: of the chat's turns that show a candidate that is not refused beside the promoted
            version; None begins no trial.
        progress: who watches.

    Returns:
        The candidate, with its gates and its verdict.

    Raises:
        UserError: too little to learn from, another round at work, or a stage's own.
        Interrupted: a signal asked to stop; the same command goes on.
    """
    name = check_name(name_of(word, name))
    with _alone(name):
        if versions.find(name) is None:
            first_version(word, name, by)
        chosen = fingerprint([recipe.as_dict(), list(sources.data), sources.database])
        made = None if restart else _unannounced(name, chosen)
        if made is None:
            made = _make(name, chosen, recipe, sources, force, restart, progress)
        there = versions.lineage_of(name).promoted
        if share is not None and made.verdict != "refused" and made.number != there:
            versions.set_trial(name, made.number, share)
        write_json(made.folder / ANNOUNCED, {"date": now()})
    return made


def _make(
    name: str,
    chosen: str,
    recipe: Recipe,
    sources: Sources,
    force: bool,
    restart: bool,
    progress: RunProgress | None,
) -> Version:
    """Begin a round, or go on with it, up to the version in its place."""
    folder = versions.folder_of(name) / versions.NEXT
    with versions.changing(name):
        state = _begun(folder, chosen, restart)
        if state is None:
            state = _begin(folder, name, chosen, recipe, sources, force)
    _refuse_the_words_of_the_deleted(folder / FROZEN, sources)
    parent = versions.version(name, state.parent)
    versions.verify(parent)
    fitted = _fitted(recipe, folder, parent)
    run_recipe(fitted, folder, progress=progress, stages=ROUND)
    with versions.changing(name):
        return _record(folder, state, fitted, parent)


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """Let no second improvement of a name begin, go on, or drop this one's files."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(versions.folder_of(name) / ".improving", QuietProgress()))
        except UserError as error:
            if "at work" not in error.problem:
                raise
            holder = error.problem.partition("(")[2].rstrip(")")
            raise UserError(
                f"{name}: another improvement is at work ({holder})",
                "wait for its end, or stop it; then run this command again",
            ) from None
        yield


def _unannounced(name: str, chosen: str) -> Version | None:
    """The newest version, if it was made by this command, which was killed right after."""
    newest = versions.versions(name)[-1]
    path = newest.folder / ROUND_FILE
    if not path.is_file() or (newest.folder / ANNOUNCED).is_file():
        return None
    return newest if _read_round(path).chosen == chosen else None


def _read_round(path: Path) -> Round:
    try:
        return msgspec.convert(read_json(path), Round)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: damaged ({error})", "drop the round: --restart") from error


def _refuse_the_words_of_the_deleted(frozen: Path, sources: Sources) -> None:
    """Raises UserError if somebody was deleted after their words were frozen."""
    if sources.data:
        return
    gone = set(people_of(read_frozen(frozen))) - sources.people()
    if gone:
        raise UserError(
            f"{frozen}: the round holds words of {len(gone)} deleted "
            f"{'person' if len(gone) == 1 else 'people'}",
            "begin it again without them: --restart",
        )


def first_version(word: str, name: str, by: str) -> Version:
    """Copy a model, with its reward model and its corpus where it has them, as version 1."""
    source = resolve(word)
    read = read_model(source.path)
    run = source.path.parent.parent if source.format == "lmsmith" else None
    folder = versions.folder_of(name) / versions.NEXT
    with versions.changing(name):
        with atomic_folder(folder) as partial:
            card = {**read.card, "source": word}
            save_model(partial / "model", read.decoder, read.tokenizer, card)
            reward = run / "reward/model" if run else None
            if reward is not None and (reward / "config.json").is_file():
                tokenizer = load_tokenizer(reward)
                save_model(partial / "reward/model", load_scalar_model(reward), tokenizer, {})
            corpus = run / "pretrain" if run else None
            if corpus is not None and (corpus / MIXTURE_FILE).is_file():
                shutil.copytree(corpus / SHARDS_FOLDER, partial / "pretrain" / SHARDS_FOLDER)
                shutil.copyfile(corpus / MIXTURE_FILE, partial / "pretrain" / MIXTURE_FILE)
            made = Version(name, 1, "model", versions.hash_model(partial / "model"), word, now())
            versions.write_version(partial, made)
        shutil.rmtree(made.folder, ignore_errors=True)  # of a kill before the lineage was written
        versions.put_in_place(made)
        versions.found_lineage(made, by or "lmsmith improve")
    return made


def _ledger(name: str) -> Path:
    """The sides of the newest version, which keep those of all versions before it."""
    return versions.folder_of(name) / str(versions.next_number(name) - 1) / "data" / SIDES_FILE


def _begun(folder: Path, chosen: str, restart: bool) -> Round | None:
    """The round under way, if there is one that may go on."""
    path = folder / ROUND_FILE
    if restart or not path.is_file():
        if folder.exists():
            shutil.rmtree(folder)
        return None
    state = _read_round(path)
    if state.chosen != chosen:
        raise UserError(
            f"{folder}: a round began on {state.began} with other settings or judgements",
            "run that command again to finish it, or drop it: --restart",
        )
    return state


def _begin(
    folder: Path, name: str, chosen: str, recipe: Recipe, sources: Sources, force: bool
) -> Round:
    """Freeze the judgements; the round has begun when its file is written."""
    parent = _parent(name, recipe)
    ledger = _ledger(name)
    earlier = read_sides(ledger)
    found = sources.read()
    if not found.judgements:
        raise UserError(
            f"{name}: nobody has judged anything in {sources}",
            "collect more: lmsmith serve, or the labelling queue; or name other --data",
        )
    summary = summarise(found.judgements, known_of(found.judgements, earlier))
    if earlier and not summary.new and not force and not _newly_excluded(name, recipe):
        raise UserError(
            f"{name}: nobody has judged anything since version {versions.next_number(name) - 1}",
            "collect more, or go on with --force",
        )
    if not {"sft", "ppo"} & set(_stages(recipe, found.judgements, earlier)):
        raise UserError(
            f"{name}: nothing to learn from: " + "; ".join(summary.too_little),
            "collect more: lmsmith serve, or the labelling queue",
        )
    if summary.too_little and not force:
        raise UserError("\n".join(summary.too_little), "collect more, or go on with --force")
    freeze(folder / FROZEN, found.judgements, found.reliability, ledger)
    state = Round(name, parent.number, now(), recipe.name, chosen)
    write_json(folder / ROUND_FILE, msgspec.to_builtins(state))
    return state


def _newly_excluded(name: str, recipe: Recipe) -> set[str]:
    """Ids that are excluded now, and were not when the newest version was made."""
    path = versions.versions(name)[-1].folder / "data" / SNAPSHOT_FILE
    before: Any = read_json(path) if path.is_file() else {}
    return set(_data(recipe).exclude) - set(before.get("excluded", ()))


def _stages(
    recipe: Recipe, judgements: Sequence[Judgement], earlier: Mapping[str, Any]
) -> tuple[str, ...]:
    """The stages of the recipe that have something to learn from, in their order."""
    config: Any = recipe.stages["data"]
    sides = divide(sorted(judgements, key=lambda each: each.id), config, earlier).sides

    def decided(side: Side) -> int:  # a tie puts nothing in an order
        return sum(each.kind in RANKED and len(set(each.ranks)) > 1 for each in sides[side])

    missing = set()
    demonstrated = sum(each.kind in DEMONSTRATED for each in sides["train"])
    if demonstrated < LEAST["demonstrations"]:
        missing |= {"sft", "pretrain"}
    if decided("train") < LEAST["rankings"]:
        missing |= {"reward", "previous_reward", "ppo"}
    if decided("judge") < LEAST["rankings"]:
        missing |= {"judge"}
    return tuple(each.name for each in ROUND if each.name in {*recipe.stages} - missing)


def _fitted(recipe: Recipe, folder: Path, parent: Version) -> Recipe:
    """The recipe with the round's files, without stages that have nothing to learn from."""
    frozen = folder / FROZEN
    present = _stages(recipe, read_frozen(frozen), read_sides(frozen / SIDES_FILE))
    shape = read_model_config(parent.path)[1]
    root = versions.folder_of(parent.name) / "1"
    corpus = root / "pretrain"
    has_corpus = (corpus / MIXTURE_FILE).is_file()
    if has_corpus and "ppo" in present:  # it needs no demonstrations
        present = tuple(each.name for each in ROUND if each.name in {*present, "pretrain"})
    told = {
        "data": {"frozen": str(frozen)},
        "base": {"model": str(parent.path), "folder": ""},
        "pretrain": {"corpus": str(corpus) if has_corpus else ""},
        "previous_reward": {"model": str(parent.folder / "reward/model")},
    }
    stages: dict[str, Any] = {}
    for name in present:
        if name == "previous_reward" and not (parent.folder / "reward/model").is_dir():
            continue
        settings: Any = replace(recipe.stages[name], **told.get(name, {}))  # type: ignore[type-var]
        stages[name] = _fitted_to(shape, settings)
    if "ppo" in stages and "pretrain" not in stages:
        stages["ppo"] = replace(stages["ppo"], ptx_coefficient=0.0)
    return replace(recipe, stages=stages)


def _fitted_to(shape: ModelConfig, settings: Any) -> Any:
    """Settings of a stage with lengths that the context has, and adapters for a large model."""
    names = {each.name for each in fields(settings)}
    changed: dict[str, Any] = {}
    if "max_length" in names:
        changed["max_length"] = min(settings.max_length or shape.context, shape.context)
    if "max_new_tokens" in names:
        changed["max_new_tokens"] = min(settings.max_new_tokens, shape.context // 4)
    if "max_prompt_tokens" in names and settings.max_prompt_tokens:
        most = shape.context - changed["max_new_tokens"] - 1
        changed["max_prompt_tokens"] = min(settings.max_prompt_tokens, most)
    if "batch_tokens" in names:
        row = changed["max_length"]
        changed["batch_tokens"] = max(1, round(settings.batch_tokens / row)) * row
    if "adapter" in names and shape.parameters >= ADAPTERS_FROM and not settings.adapter.rank:
        changed["adapter"] = AdapterConfig(rank=ADAPTER_RANK)
    return replace(settings, **changed)


def _record(folder: Path, state: Round, recipe: Recipe, parent: Version) -> Version:
    """Write the version's record and move its folder into place."""
    gates: Any = read_json(folder / "gates" / GATES_FILE)
    snapshot: Any = read_json(folder / "data" / SNAPSHOT_FILE)
    model = next(f"{name}/model" for name in ("ppo", "sft") if name in recipe.stages)
    figures: dict[str, float] = {}
    for name in recipe.stages:
        record: Any = read_record(folder / name / "stage.json") or {}
        figures |= {f"{name}.{key}": value for key, value in record.get("metrics", {}).items()}
    made = Version(
        name=state.name,
        number=versions.next_number(state.name),
        model=model,
        sha256=versions.hash_model(folder / model),
        source=state.recipe,
        created=now(),
        parents=(parent.number,),
        learnt=Learnt(
            snapshot["sha256"], snapshot["counts"], tuple(snapshot["people"]), state.began
        ),
        verdict=gates["verdict"],
        gates=tuple(msgspec.convert(gates["gates"], list[Gate])),
        figures=figures,
    )
    build_version_page(made, folder)
    versions.write_version(folder, made)
    versions.put_in_place(made)
    return made
