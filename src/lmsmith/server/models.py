"""The served models: read, named, and given their share of memory."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import torch

from lmsmith.catalogue import versions
from lmsmith.catalogue.adapted import (
    Adapters,
    find_adapters,
    is_adapter,
    read_adapted,
    read_low_rank,
)
from lmsmith.catalogue.reading import (
    ReadModel,
    read_draft_model,
    read_model,
    tokenizer_files,
)
from lmsmith.catalogue.remote import RemoteModel
from lmsmith.catalogue.resolve import Sampling, Source, advised_sampling, resolve
from lmsmith.catalogue.versions import Version, hash_files
from lmsmith.core.errors import UserError
from lmsmith.core.format import format_size
from lmsmith.device import HOST
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.machine import stays_packed
from lmsmith.generation.remote import RemoteScheduler
from lmsmith.generation.scheduler import Scheduler
from lmsmith.generation.speculative import PROMPT_LOOKUP, Drafter, DraftModel, PromptLookup
from lmsmith.generation.weights import WeightKind
from lmsmith.models.adapters import LowRank
from lmsmith.models.folder import read_model_config
from lmsmith.options import Weights
from lmsmith.server.errors import ApiError
from lmsmith.server.pacing import small_portions
from lmsmith.tokenizers import Tokenizer
from lmsmith.training.machine import ResolvedMachine

log = logging.getLogger("lmsmith.server")

GIGABYTE = 10**9

_numbers = itertools.count(1)


@dataclass(eq=False)
class ServedModel:
    """A model with its scheduler, which holds its cache: no version reads another's.

    Adapters on one base share its scheduler.
    """

    name: str  # for clients
    tokenizer: Tokenizer
    scheduler: (
        Scheduler | RemoteScheduler
    )  # steps in the engine thread; others read `active`, `check` and sizes
    created: int  # time of loading, seconds since 1970
    weight_bytes: int  # in memory
    cache_bytes: int  # at most
    advised: Sampling  # that its makers advise
    source: str  # the path or name that commands take
    version: Version | None = None
    follows: bool = False  # changes to what is promoted
    tokenizer_sha256: str = ""  # of its files, for a version
    adapter: str = ""  # that the scheduler's model answers with
    shares: str = ""  # the model that holds the weights and the cache; empty for its own
    key: str = field(default_factory=lambda: f"model {next(_numbers)}")
    thread_key: str = ""  # of its scheduler in the engine thread

    def __post_init__(self) -> None:
        self.thread_key = self.thread_key or self.key

    @property
    def recorded(self) -> str:
        """The author of its messages in the database, such as ``ours@2``."""
        return self.version.word if self.version else self.name

    @property
    def bytes(self) -> int:
        """Weights and cache of its own, at most."""
        return self.weight_bytes + (0 if self.shares else self.cache_bytes)

    @property
    def context(self) -> int:
        """Most tokens of the tokenizer; bytes, about, where another server has the model."""
        if isinstance(self.scheduler, RemoteScheduler):
            return self.scheduler.model.context
        return self.scheduler.model.config.context

    @property
    def shown_context(self) -> int | None:
        """Most tokens of prompt and reply; None if the model's server does not say."""
        if isinstance(self.scheduler, RemoteScheduler):
            return self.scheduler.model.context_tokens
        return self.context

    @property
    def is_remote(self) -> bool:
        """Whether another server has the model."""
        return isinstance(self.scheduler, RemoteScheduler)

    def local(self, what: str) -> Scheduler:
        """The scheduler, for what only a model of this machine gives.

        Raises:
            ApiError: another server has the model (400).
        """
        if isinstance(self.scheduler, RemoteScheduler):
            problem = f"{self.name}: another server runs this model, which does not give {what}"
            raise ApiError(400, problem, param="model", code="not_available")
        return self.scheduler


def served_model(models: Mapping[str, ServedModel], name: str | None) -> ServedModel:
    """The model of that name, or the first one; raises ApiError (404) for an unknown name."""
    if name is None and models:
        return next(iter(models.values()))
    if not models:
        problem = "no model here writes text: POST /v1/tasks/NAME, see GET /v1/tasks"
        raise ApiError(404, problem, param="model", code="model_not_found")
    assert name is not None
    if name not in models:
        problem = f"there is no model {name!r} here; there is: {', '.join(models)}"
        raise ApiError(404, problem, param="model", code="model_not_found")
    return models[name]


def shown_name(models: Mapping[str, ServedModel], recorded: str) -> str:
    """What clients call the author of a message, whatever version it was."""
    name, number = versions.split_version(recorded)
    if recorded in models or number is None:
        return recorded
    found = (each.name for each in models.values() if each.version and each.version.name == name)
    return next(found, name)


def name_and_model(word: str) -> tuple[str, str]:
    """Both of ``NAME=MODEL``; a model alone is named by the last part of its path."""
    name, equals, model = word.partition("=")
    if equals and name and model and not Path(word).exists():
        return name, model
    return Path(resolve(word).name).name or word, word


@dataclass(frozen=True)
class FoundModel:
    """A model that was read, its version, and whether its name means the promoted one.

    Models on one base have the same `ReadModel.decoder`, and adapters of their own or none.
    """

    read: ReadModel
    version: Version | None = None
    follows: bool = False
    tokenizer_sha256: str = ""
    adapter: LowRank | None = None
    base: Source | None = None  # that the adapter stands on


def read_models(
    words: Sequence[str],
    weights: Weights = "model",
    adapters_on: str = "",
    device: torch.device = HOST,
) -> dict[str, FoundModel]:
    """Models by name; matrices of quantised files stay packed if ``weights`` are the file's.

    Adapters whose base is another one of the models, or the base of others, share its weights.

    Args:
        words: ``NAME=MODEL``, or models.
        weights: as in `Loader`.
        adapters_on: name of the model that all adapters stand on, whatever their files say.

    Raises:
        UserError: one cannot be read, two have one name, a version's files are not those of its
            record, or adapters were made for another model.
    """
    named = [name_and_model(word) for word in words]
    names = [name for name, _ in named]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two models are called {twice}", f"name one: other={twice}")
    packed = stays_packed(weights, device)
    shared = _shared(named, adapters_on)
    bases = {each.base: read_model(each.base, packed=packed) for each in shared.values()}
    found = {}
    for name, model in named:
        if name not in shared:
            found[name] = _read(name, model, packed)
            continue
        adapters = shared[name]
        base = bases[adapters.base]
        low_rank = read_low_rank(adapters, base) if adapters.own else None
        read = read_adapted(adapters.own[-1], base) if adapters.own else base
        found[name] = FoundModel(read, adapter=low_rank, base=adapters.base)
    return found


def _shared(named: Sequence[tuple[str, str]], adapters_on: str) -> dict[str, Adapters]:
    """The models that stand on one base with others, by name; the base's own has no adapters.

    An adapter that is alone on its base is merged into it, which is faster.
    """
    sources = {name: resolve(word) for name, word in named if not _is_version(name, word)}
    if adapters_on and (adapters_on not in sources or is_adapter(sources[adapters_on])):
        whole = [name for name, source in sources.items() if not is_adapter(source)]
        raise UserError(
            f"--adapters-on {adapters_on}: no served model of that name can be a base",
            f"name one of {', '.join(whole)}" if whole else "serve the base too: base=MODEL",
        )
    found: dict[str, Adapters] = {}
    for name, source in sources.items():
        if not is_adapter(source):
            found[name] = Adapters(source, ())
        else:
            found[name] = find_adapters(source, sources.get(adapters_on))
    by_base: dict[Path, list[str]] = {}
    for name, each in found.items():
        by_base.setdefault(each.base.path.resolve(), []).append(name)
    shared: dict[str, Adapters] = {}
    for names in by_base.values():
        if len(names) > 1 and any(found[name].own for name in names):
            base = found[names[0]].base
            shared |= {name: replace(found[name], base=base) for name in names}
    return shared


def _is_version(name: str, word: str) -> bool:
    return has_become(name, word) or (not Path(word).exists() and versions.find(word) is not None)


def _read(name: str, word: str, packed: bool) -> FoundModel:
    if has_become(name, word):
        word = name
    version = None if Path(word).exists() else versions.find(word)
    if version is None:
        return FoundModel(read_model(word, packed=packed))
    versions.verify(version)
    sha256 = _tokenizer_sha256(version)
    read = _kept(read_model(Source("lmsmith", version.path, word)))
    return FoundModel(read, version, versions.split_version(word)[1] is None, sha256)


def _kept(read: ReadModel) -> ReadModel:
    """The model in memory of its own: mapped files change when somebody writes to them, and
    a version stays what was compared with its record."""
    for parameter in read.decoder.parameters():
        parameter.data = parameter.data.clone()
    return read


def _tokenizer_sha256(version: Version) -> str:
    return hash_files(tokenizer_files(version.path))


def has_become(name: str, word: str) -> bool:
    """Whether a served model is the one that became version 1 of the versions of its name.

    It is not where its files were written after that version: another model is there now.
    """
    if name not in versions.names():
        return False
    try:
        first, source = versions.version(name, 1), resolve(word)
        if resolve(first.source).path.resolve() != source.path.resolve():
            return False
        return _written(source.path) <= datetime.fromisoformat(first.created).timestamp() + 1
    except (UserError, OSError, ValueError):  # it is gone: the served one goes on as it is
        return False


def _written(path: Path) -> float:
    """When a model's files were last written, seconds since 1970."""
    files = [path] if path.is_file() else [each for each in path.iterdir() if each.is_file()]
    return max((each.stat().st_mtime for each in files), default=0.0)


@dataclass
class Loader:
    """Prepares models for serving, within a budget.

    Attributes:
        machine: gives the precision.
        weights: as their file has them, in that precision, or ``int8``.
        memory_bytes: for all weights and caches, the draft's too; 0 gives every cache `GIGABYTE`.
        streams: replies generated together, of each model.
        draft: a smaller model that guesses the tokens of each, or ``prompt-lookup``.
    """

    machine: ResolvedMachine
    weights: Weights
    memory_bytes: int
    streams: int
    draft: str = ""
    _smaller: InferenceDecoder | None = None  # the draft, which all models share

    def first(self, models: Mapping[str, FoundModel]) -> list[ServedModel]:
        """The models of a server that starts.

        The budget keeps a second place for each model that follows its promoted version: both are
        in memory while they change. A budget that is too small for that goes to the first places.

        Raises:
            UserError: the budget has no room for the weights and a context of each model, or the
                draft has another tokenizer than one of them.
        """
        units = {next(iter(unit)): unit for unit in _by_decoder(models)}
        ready = {name: self._decoder(unit) for name, unit in units.items()}
        if self.draft and self.draft != PROMPT_LOOKUP:
            smaller = read_draft_model(
                self.draft,
                [each.read for each in models.values()],
                packed=stays_packed(self.weights, self.machine.place),
            )
            self._smaller = InferenceDecoder(smaller, self.machine, weights=self._kind)
        shared = self._smaller.held_bytes if self._smaller else 0
        drafters = {name: self._drafter() for name in units}
        sizes = {
            name: model.held_bytes + _draft_bytes(drafters[name]) for name, model in ready.items()
        }
        contexts = {name: _context_bytes(model) for name, model in ready.items()}
        least = {name: sizes[name] + contexts[name] for name in units}
        places = {name: 1 + models[name].follows for name in units}
        twice = shared + sum(places[name] * least[name] for name in units)
        if twice > self.memory_bytes > 0:
            needed = shared + sum(least.values())
            if self.memory_bytes < needed:
                raise UserError(
                    f"--memory: {self.memory_bytes / GIGABYTE:.2f} GB has no room for "
                    f"{', '.join(models)} with one conversation each",
                    f"give it {needed / GIGABYTE + 0.005:.2f} or more, or serve fewer models",
                )
            if any(each.follows for each in models.values()):
                log.warning(
                    "--memory: %.2f GB has no room for a second version beside the first: a newly "
                    "promoted one needs a restart, or --memory %.2f",
                    self.memory_bytes / GIGABYTE,
                    twice / GIGABYTE + 0.005,
                )
            places = dict.fromkeys(units, 1)
        cache_bytes = GIGABYTE
        if self.memory_bytes and models:
            weights = sum(places[name] * sizes[name] for name in units)
            cache_bytes = (self.memory_bytes - shared - weights) // sum(places.values())
        served = {
            each.name: each
            for name, unit in units.items()
            for each in self._served(unit, ready[name], drafters[name], cache_bytes)
        }
        return [served[name] for name in models]

    def beside(
        self, version: Version, now: ServedModel, loaded: Sequence[ServedModel]
    ) -> ServedModel:
        """A version that takes the place of a served one, or is on trial beside it.

        Args:
            version: to be read.
            now: the served version of the name.
            loaded: all models in memory.

        Raises:
            UserError: the version's files are not those of its record, cannot be read, or have no
                room beside the models in memory.
        """
        with small_portions(lambda: any(each.scheduler.active for each in loaded)):
            return self._beside(version, now, loaded)

    def _beside(
        self, version: Version, now: ServedModel, loaded: Sequence[ServedModel]
    ) -> ServedModel:
        versions.verify(version)
        shape, before = read_model_config(version.path)[1], now.local("versions").model
        weight_bytes = before.held_bytes if now.shares else now.weight_bytes
        size = round(weight_bytes * shape.parameters / before.config.parameters)
        context = shape.context * shape.cache_bytes_per_token(before.dtype.itemsize)
        cache_bytes = now.cache_bytes
        if self.memory_bytes:
            shared = self._smaller.held_bytes if self._smaller else 0
            free = self.memory_bytes - shared - sum(each.bytes for each in loaded)
            cache_bytes = min(cache_bytes, free - size)
            if cache_bytes < context:
                raise UserError(
                    f"{version.word} needs {format_size(size + context)} beside the versions in "
                    f"memory, and --memory has {format_size(max(0, free))} left",
                    f"{now.recorded} goes on; restart the server, or give it more --memory",
                )
        # Parsing a large vocabulary keeps Python's lock for half a second; versions share theirs.
        sha256 = _tokenizer_sha256(version)
        same = (each.tokenizer for each in loaded if each.tokenizer_sha256 == sha256)
        source = Source("lmsmith", version.path, now.source)
        found = _kept(read_model(source, next(same, None)))
        if self._smaller and self._smaller.config.vocabulary_size != shape.vocabulary_size:
            raise UserError(
                f"--draft {self.draft}: it has another tokenizer than {version.word}",
                f"{now.recorded} goes on; restart the server with another draft",
            )
        unit = {now.name: FoundModel(found, version, now.follows, sha256)}
        return self._served(unit, self._decoder(unit), self._drafter(), cache_bytes)[0]

    @property
    def _kind(self) -> WeightKind:
        return "int8" if self.weights == "int8" else "model"

    def _decoder(self, unit: Mapping[str, FoundModel]) -> InferenceDecoder:
        """The weights that models share, with the adapters of each by its name."""
        adapters = {name: each.adapter for name, each in unit.items() if each.adapter is not None}
        decoder = next(iter(unit.values())).read.decoder
        return InferenceDecoder(decoder, self.machine, weights=self._kind, adapters=adapters)

    def _drafter(self) -> Drafter | None:
        if self._smaller is not None:
            return DraftModel(self._smaller)
        return PromptLookup() if self.draft else None

    def _served(
        self,
        unit: Mapping[str, FoundModel],
        ready: InferenceDecoder,
        drafter: Drafter | None,
        cache_bytes: int,
    ) -> list[ServedModel]:
        """The models of one scheduler; the first holds the weights and the cache."""
        (first, found), *_ = unit.items()
        scheduler = Scheduler(
            ready,
            found.read.tokenizer,
            cache_bytes=cache_bytes,
            rows=self.streams,
            drafter=drafter,
        )
        thread_key, made = f"scheduler {next(_numbers)}", []
        for name, each in unit.items():
            adapter = name if name in ready.adapters else ""
            size = ready.adapters[name].bytes if adapter else 0
            if name == first:
                others = sum(own.bytes for of, own in ready.adapters.items() if of != first)
                size = ready.held_bytes - others + _draft_bytes(drafter)
            made.append(
                ServedModel(
                    name,
                    each.read.tokenizer,
                    scheduler,
                    int(time.time()),
                    size,
                    cache_bytes,
                    advised_sampling(each.read.source, each.base),
                    each.read.source.name,
                    each.version,
                    each.follows,
                    each.tokenizer_sha256,
                    adapter,
                    "" if name == first else first,
                    thread_key=thread_key,
                )
            )
        return made


def serve_remote(name: str, model: RemoteModel, streams: int) -> ServedModel:
    """A model behind another server, as a served model."""
    scheduler = RemoteScheduler(model, rows=streams)
    return ServedModel(
        name, model.tokenizer, scheduler, int(time.time()), 0, 0, Sampling(), model.word
    )


def _by_decoder(models: Mapping[str, FoundModel]) -> list[dict[str, FoundModel]]:
    """The models that share their weights, together; of each the one without adapters first."""
    units: dict[int, dict[str, FoundModel]] = {}
    for name, each in sorted(models.items(), key=lambda item: item[1].adapter is not None):
        units.setdefault(id(each.read.decoder), {})[name] = each
    return list(units.values())


def _draft_bytes(drafter: Drafter | None) -> int:
    """Cache of a draft model."""
    return drafter.cache_bytes if isinstance(drafter, DraftModel) else 0


def _context_bytes(model: InferenceDecoder) -> int:
    """Cache of one whole context."""
    return model.config.context * model.config.cache_bytes_per_token(model.dtype.itemsize)


def serve_models(
    models: Mapping[str, ReadModel],
    *,
    machine: ResolvedMachine,
    weights: Weights,
    draft: str = "",
    memory_bytes: int,
    streams: int,
) -> list[ServedModel]:
    """Prepare models without versions (`Loader.first`)."""
    found = {name: FoundModel(read) for name, read in models.items()}
    return Loader(machine, weights, memory_bytes, streams, draft).first(found)
