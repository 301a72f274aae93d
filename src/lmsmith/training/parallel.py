"""Several processes train as one: which part each takes, what they add up, how they end together.

A batch is the same whatever the number of processes: a function of seed and step. Each process
computes its rows of it; losses, counts and gradients are sums over all. So a run's losses do not
depend on the number, but for rounding.

The first process leads: it runs the recipe, writes and prints. The others wait for the stages that
all take part in (`stages.pipeline`), and leave each when its training is over.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lmsmith.core.errors import Interrupted, PeerLost
from lmsmith.core.files import read_json
from lmsmith.device import HOST, is_host
from lmsmith.runs.signals import stop_if_requested, stop_requested

Part = TypeVar("Part")

BUCKET = 1 << 24
"""Numbers of gradients that are added up in one call."""

WAIT_SECONDS = 0.05
"""Time between two looks for the leader's next word."""


STOP_SECONDS = 5.0
"""Time that the leader has to end all in order, once a signal asked a waiting process to stop."""


NOTICE_SECONDS = 1.0
"""Time that the others have to notice too that a process does not answer."""


@dataclass(frozen=True)
class Team:
    """This process among those that train together; ``Team()`` is alone."""

    rank: int = 0
    count: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    @property
    def rows(self) -> slice:
        """This process's rows of a batch: every ``count``-th."""
        return slice(self.rank, None, self.count)

    def own(self, items: int) -> range:
        """The numbers of this process's items: every ``count``-th."""
        return range(self.rank, items, self.count)

    def parts(self, parts_of: Callable[[int], Sequence[Part]]) -> list[tuple[Part, float]]:
        """This process's parts of a batch with their weight, 1.

        All processes compute equally many, since sharded models meet in every pass: one that has
        fewer computes another's part with weight 0.

        Args:
            parts_of: the parts of the process of a rank.
        """
        all_ = [list(parts_of(rank)) for rank in range(self.count)]
        own, most = all_[self.rank], max(map(len, all_))
        spare = [part for parts in all_ for part in parts][:1]
        return [(part, 1.0) for part in own] + [(part, 0.0) for part in spare] * (most - len(own))


class Parted(BaseException):
    """Ends a stage in a process that does not lead, once training is over."""


@dataclass
class _Group:
    """The process group of this program, and who takes part now."""

    rank: int
    count: int
    store: Any
    timeout: float
    team: Team = Team()
    calls: int = 0
    words: int = 0
    meetings: int = 0
    signs: int = 0


_group: _Group | None = None


def team() -> Team:
    """The processes that train together now; alone outside of `together`."""
    return Team() if _group is None else _group.team


def started_together() -> bool:
    """Whether this process was started with others, by torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def join(
    device: torch.device,
    timeout: float,
    store: Any = None,
    rank: int = -1,
    count: int = -1,
) -> None:
    """Meet the other processes; numbers go by gloo, tensors of a GPU by NCCL.

    Args:
        device: of this process.
        timeout: seconds after which a process that does not answer is given up.
        store: where they meet, with ``rank`` and ``count``; as torchrun says if None.
    """
    global _group
    backend = "gloo" if is_host(device) else f"{HOST.type}:gloo,{device.type}:nccl"
    if device.type == "cuda":
        torch.cuda.set_device(device)
    wait = datetime.timedelta(seconds=timeout)
    place = None if is_host(device) else device
    dist.init_process_group(
        backend, timeout=wait, store=store, rank=rank, world_size=count, device_id=place
    )
    own = dist.distributed_c10d.PrefixStore("lmsmith", dist.distributed_c10d._get_default_store())
    _group = _Group(dist.get_rank(), dist.get_world_size(), own, timeout)


def leave() -> None:
    """Part from the other processes."""
    global _group
    _group = None
    if dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def together() -> Iterator[Team]:
    """Inside, all processes do the same; `leave_stage` ends it early.

    Raises:
        PeerLost: a process has ended or hangs, also where PyTorch's own code met it (FSDP2).
    """
    if _group is None:
        yield Team()
        return
    _group.team = Team(_group.rank, _group.count)
    try:
        yield _group.team
    except RuntimeError as error:
        if not _of_peers(error):
            raise
        raise PeerLost(_fault("computing with a model in parts", error)) from error
    finally:
        _group.team = Team()


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Inside, this process does an item of its own, as if it were alone."""
    if _group is None:
        yield
        return
    before, _group.team = _group.team, Team()
    try:
        yield
    finally:
        _group.team = before


def leave_stage() -> None:
    """The training of this stage is over: the leader goes on alone.

    Raises:
        Parted: in the other processes.
    """
    if _group is None:
        return
    leads, _group.team = team().leads, Team()
    if not leads:
        raise Parted


def from_leader(make: Callable[[], Any]) -> Any:
    """The leader's result, as JSON, in all processes; they wait for it as long as it takes."""
    if team().count == 1:
        return make()
    if team().leads:
        found = make()
        tell(found)
        return found
    return hear()


def tell(word: Any) -> None:
    """Give all other processes a word, as JSON."""
    assert _group is not None
    _group.words += 1
    _group.store.set(f"word/{_group.words}", json.dumps(word))


def hear() -> Any:
    """The leader's next word."""
    assert _group is not None
    _group.words += 1
    key, asked = f"word/{_group.words}", 0.0
    while True:
        with _losing_peers("waiting for the first process"):
            if _group.store.check([key]):
                return json.loads(_group.store.get(key))
        if (number := stop_requested()) is not None:
            asked = asked or time.monotonic()
            if time.monotonic() - asked > STOP_SECONDS:
                raise Interrupted(number)
        time.sleep(WAIT_SECONDS)


def give_sign() -> None:
    """Tell the others that this process is at work: one more of its items is done."""
    if team().count > 1:
        assert _group is not None
        _group.signs += 1
        with _losing_peers("telling that it works"):
            _group.store.set(f"sign/{_group.rank}", str(_group.signs))


def meet() -> None:
    """Wait until all processes have done their items and come here too.

    Raises:
        Interrupted: a signal asked to stop meanwhile; what this process did is saved.
        PeerLost: one has given no sign for the group's timeout, or has ended.
    """
    if team().count == 1:
        return
    assert _group is not None
    _group.meetings += 1
    place, signs, since = f"met/{_group.meetings}", [""], time.monotonic()
    with _losing_peers("waiting for the others' items"):
        _group.store.set(f"{place}/{_group.rank}", "")
        while missing := [r for r in range(_group.count) if not _there(f"{place}/{r}")]:
            stop_if_requested()
            found = [str(_group.store.get(f"sign/{r}")) for r in missing if _there(f"sign/{r}")]
            if found != signs:
                signs, since = found, time.monotonic()
            if time.monotonic() - since > _group.timeout:
                raise PeerLost(_unanswered(list(map(str, missing)), "doing its items"))
            time.sleep(WAIT_SECONDS)


def read_together(paths: Sequence[Path]) -> list[Any]:
    """The JSON of files that the processes have written, once all have; in each process.

    None goes on before all have read: the first removes a stage's parts when the stage is done.

    Raises:
        Interrupted, PeerLost: as `meet`.
    """
    meet()
    found = [read_json(path) for path in paths]
    meet()
    return found


def _there(key: str) -> bool:
    assert _group is not None
    return bool(_group.store.check([key]))


def add_up(*values: float) -> list[float]:
    """Sums over the processes, the same to the bit in all of them."""
    if team().count == 1:
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    _all_reduce(sums)
    found: list[float] = sums.tolist()
    return found


def highest(*values: int) -> list[int]:
    """The highest of each value in any process."""
    if team().count == 1:
        return list(values)
    found = torch.tensor(values, dtype=torch.int64)
    _all_reduce(found, dist.ReduceOp.MAX)
    whole: list[int] = found.tolist()
    return whole


def gather(word: Part) -> list[Part]:
    """The words of all processes, by rank."""
    if team().count == 1:
        return [word]
    words: list[Any] = [None] * team().count
    with in_step("gathering words"):
        dist.all_gather_object(words, word)
    return words


def add_tables(*tables: Tensor) -> None:
    """Add the other processes' tables, in place; each has filled its own rows, the rest is 0."""
    if team().count > 1:
        for table in tables:
            _all_reduce(table)


def gather_lists(own: Sequence[Sequence[int]], total: int) -> list[list[int]]:
    """The lists of all processes; this one's are those of ``team().own(total)``."""
    if team().count == 1:
        return [list(each) for each in own]
    longest = highest(max((len(each) for each in own), default=0))[0]
    table = torch.zeros(total, longest + 1, dtype=torch.int64)
    for place, each in zip(team().own(total), own, strict=True):
        table[place, : len(each) + 1] = torch.tensor([len(each), *each])
    add_tables(table)
    return [row[1 : row[0] + 1] for row in table.tolist()]


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Add up the gradients of all processes; each computed a part of the batch.

    All have a gradient of the same parameters, since all compute equally many parts.
    """
    if team().count == 1:
        return
    gradients = [each.grad for each in parameters if each.grad is not None]
    if any(hasattr(each, "device_mesh") for each in gradients):
        for each in gradients:
            each.mul_(team().count)  # the backward pass has made them means
        return
    bucket: list[Tensor] = []
    for number, gradient in enumerate(gradients, start=1):
        bucket.append(gradient)
        if number == len(gradients) or sum(each.numel() for each in bucket) >= BUCKET:
            flat = torch.cat([each.flatten() for each in bucket])
            _all_reduce(flat)
            sums = torch.split(flat, [each.numel() for each in bucket])
            for each, total in zip(bucket, sums, strict=True):
                each.copy_(total.view_as(each))
            bucket = []


def _all_reduce(tensor: Tensor, operation: Any = dist.ReduceOp.SUM) -> None:
    with in_step("adding up"):
        dist.all_reduce(tensor, operation)


@contextlib.contextmanager
def in_step(doing: str) -> Iterator[None]:
    """Inside, all processes make the same call; one that does not come is named.

    Raises:
        PeerLost: instead of any RuntimeError, which is of the connection.
    """
    assert _group is not None
    _group.calls += 1
    with _losing_peers(doing):
        _group.store.set(f"at/{_group.rank}", str(_group.calls))
        yield


@contextlib.contextmanager
def _losing_peers(doing: str) -> Iterator[None]:
    """Turn the failure of a call into a `PeerLost` that names the process at fault."""
    try:
        yield
    except (RuntimeError, dist.DistNetworkError) as error:
        raise PeerLost(_fault(doing, error)) from error


def _of_peers(error: RuntimeError) -> bool:
    """Whether an error is of the connection to the other processes."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def _fault(doing: str, error: Exception) -> str:
    assert _group is not None
    said = str(error).lower()
    if "timed out" not in said and "timeout" not in said:
        return f"another process of this run has ended ({doing})"
    behind = []
    for rank in range(_group.count):
        with contextlib.suppress(RuntimeError):
            key = f"at/{rank}"
            at = int(_group.store.get(key)) if _group.store.check([key]) else 0
            if at < _group.calls:
                behind.append(str(rank))
    return _unanswered(behind or _silent(), doing)


def _silent() -> list[str]:
    """The processes that do not notice in time that one does not answer."""
    assert _group is not None
    with contextlib.suppress(RuntimeError):
        _group.store.set(f"noticed/{_group.rank}", "")
        time.sleep(NOTICE_SECONDS)
        return [str(r) for r in range(_group.count) if not _there(f"noticed/{r}")]
    return []


def _unanswered(ranks: Sequence[str], doing: str) -> str:
    assert _group is not None
    named = f"process {' and '.join(ranks)}" if ranks else "another process"
    return (
        f"{named} of {_group.count} has not answered within {_group.timeout:g} s ({doing}; "
        "machine.timeout_seconds)"
    )
