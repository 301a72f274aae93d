"""What a student learns from: rows that are cut once, and the teacher's distributions for them.

`LiveTeacher` computes them at every step. `TeacherStore` keeps the k likeliest tokens of each
position and the mass of all others in files, computed once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lmsmith.core.errors import Interrupted, UserError
from lmsmith.core.files import read_json, write_json
from lmsmith.core.progress import Progress
from lmsmith.corpus.batches import NO_TARGET, Batch, generator
from lmsmith.device import HOST, device_of, moved
from lmsmith.models.decoder import Decoder, state_digest
from lmsmith.runs.signals import stop_requested
from lmsmith.training.distillation import Taught, Teach, tempered_log_probs, top_events
from lmsmith.training.losses import chunks
from lmsmith.training.machine import ResolvedMachine
from lmsmith.training.packed import packed_rows

ROWS_AT_ONCE = 16
"""Rows that the teacher reads at a time for the store; it is saved after every `SAVED_GROUPS`."""
SAVED_GROUPS = 16

LEAST_LOG_PROB = -100.0
"""Stored instead of a smaller one, so that the reverse KL stays finite."""

META_FILE, TOKENS_FILE, LOG_PROBS_FILE = "teacher.json", "tokens.npy", "log_probs.npy"


@dataclass(frozen=True)
class TaughtBatch(Batch):
    """A batch, and the number of each of its rows (batch)."""

    rows_b: npt.NDArray[np.int64]


class FixedRows:
    """Rows of a fixed number, read epoch after epoch in a fresh order.

    A batch is a pure function of the arguments and the step.

    Args:
        row: a batch of one row by its number; the same one each time.
    """

    def __init__(self, row: Callable[[int], Batch], count: int, batch_size: int, seed: int) -> None:
        self.row, self.count, self.batch_size, self._seed = row, count, batch_size, seed
        self._order = lru_cache(maxsize=2)(self._draw_order)

    def _draw_order(self, epoch: int) -> npt.NDArray[np.int64]:
        return generator(self._seed, epoch).permutation(self.count)

    def batch(self, step: int) -> TaughtBatch:
        """The batch of ``step``, counted from 0."""
        first = step * self.batch_size
        places = (divmod(first + place, self.count) for place in range(self.batch_size))
        return self.rows([int(self._order(epoch)[place]) for epoch, place in places])

    def rows(self, numbers: Sequence[int]) -> TaughtBatch:
        """These rows as a batch."""
        found = [self.row(number) for number in numbers]
        parts = {
            each.name: np.concatenate([getattr(row, each.name) for row in found])
            for each in fields(Batch)
        }
        return TaughtBatch(**parts, rows_b=np.asarray(numbers, np.int64))

    def targets(self) -> npt.NDArray[np.int64]:
        """Number of targets of each row."""
        counts = ((self.row(n).targets_bt != NO_TARGET).sum() for n in range(self.count))
        return np.fromiter(counts, np.int64, self.count)

    def digest(self) -> str:
        """SHA-256 of all rows."""
        digest = hashlib.sha256()
        for number in range(self.count):
            row = self.row(number)
            for each in fields(Batch):
                digest.update(np.ascontiguousarray(getattr(row, each.name)).tobytes())
        return digest.hexdigest()


class Teacher(Protocol):
    """Gives the teacher's distributions for rows of a batch."""

    def teach(self, batch: TaughtBatch, rows: slice) -> Teach: ...


class LiveTeacher:
    """The whole vocabulary's distributions, computed at each step.

    Args:
        decoder: the teacher.
        temperature: T of softmax(z / T).
        machine: gives the precision of its products.
    """

    def __init__(self, decoder: Decoder, temperature: float, machine: ResolvedMachine) -> None:
        self.decoder, self.temperature, self.machine = machine.put(decoder), temperature, machine

    def teach(self, batch: TaughtBatch, rows: slice) -> Teach:
        hidden_nd, weight = self.hidden(batch, rows), self.decoder.unembedding_weight

        def taught(chunk: slice) -> Taught:
            with torch.no_grad(), self.machine.autocast():
                logits_nv = torch.nn.functional.linear(hidden_nd[chunk], weight)
            return Taught(tempered_log_probs(logits_nv.detach(), self.temperature))

        return taught

    def hidden(self, batch: Batch, rows: slice = slice(None)) -> Tensor:
        """The teacher's states at the positions with a target, (n, width)."""
        with self.machine.reading(self.decoder):
            packed = packed_rows(batch, device_of(self.decoder), rows)
            found: Tensor = self.decoder(*packed.read)[packed.targets_bt != NO_TARGET]
            return found


class TeacherStore:
    """The k likeliest tokens at every target of fixed rows, in files that are mapped.

    A token takes 2 or 4 bytes and its log-probability 2, so a target takes 4 (k + 1) or 6 k + 2
    bytes. Log-probabilities are rounded to float16, and made to add up to 1 when they are read.

    Args:
        folder: is made if it is missing. A store of the same fingerprint is continued or used; of
            another, made again.
        k: fewer than the vocabulary.

    Raises:
        UserError: the folder holds something else.
        Interrupted: a signal asked to stop; what is computed is saved.
    """

    def __init__(
        self, folder: Path, rows: FixedRows, teacher: LiveTeacher, k: int, progress: Progress
    ) -> None:
        self.rows, self.k, self._device = rows, k, device_of(teacher.decoder)
        counts = rows.targets()
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        identity = {
            "teacher": state_digest(teacher.decoder),
            "rows": rows.digest(),
            "k": k,
            "temperature": teacher.temperature,
            "precision": teacher.machine.precision,
        }
        meta_path = folder / META_FILE
        if folder.is_dir() and any(folder.iterdir()) and not meta_path.is_file():
            raise UserError(f"{folder} holds something else", "name an empty folder, or a new one")
        folder.mkdir(parents=True, exist_ok=True)
        meta: Any = read_json(meta_path) if meta_path.is_file() else {}
        done = int(meta["rows"]) if meta.get("identity") == identity else 0
        self._tokens, self._log_probs = self._open(folder, teacher, new=not done)
        if done < rows.count:
            write_json(meta_path, {"identity": identity, "rows": done})
            self._fill(meta_path, identity, teacher, done, progress)

    @property
    def bytes(self) -> int:
        """Size of the files."""
        return int(self._tokens.nbytes + self._log_probs.nbytes)

    def _open(self, folder: Path, teacher: LiveTeacher, new: bool) -> tuple[Any, Any]:
        total, size = int(self._starts[-1]), teacher.decoder.config.vocabulary_size
        kind: Any = np.uint16 if size <= 1 << 16 else np.uint32
        wanted = {TOKENS_FILE: (kind, self.k), LOG_PROBS_FILE: (np.float16, self.k + 1)}
        found = []
        for name, (dtype, columns) in wanted.items():
            shape = (total, columns)
            if new:
                array = np.lib.format.open_memmap(folder / name, "w+", dtype, shape)
            else:
                array = np.lib.format.open_memmap(folder / name, "r+")
                if array.dtype != dtype or array.shape != shape:
                    raise UserError(f"{folder / name} is damaged", "remove the folder")
            found.append(array)
        return found[0], found[1]

    def _fill(
        self, meta_path: Path, identity: object, teacher: LiveTeacher, done: int, progress: Progress
    ) -> None:
        progress.begin("asking the teacher", self.rows.count, "rows", done)
        groups = range(done, self.rows.count, ROWS_AT_ONCE)
        for number, first in enumerate(groups, start=1):
            last = min(self.rows.count, first + ROWS_AT_ONCE)
            self._fill_rows(teacher, first, last)
            progress.update(last)
            stopping = stop_requested()
            if last == self.rows.count or number % SAVED_GROUPS == 0 or stopping:
                self._tokens.flush()
                self._log_probs.flush()
                write_json(meta_path, {"identity": identity, "rows": last})
            if stopping and last < self.rows.count:
                raise Interrupted(stopping)
        progress.end()

    def _fill_rows(self, teacher: LiveTeacher, first: int, last: int) -> None:
        batch = self.rows.rows(range(first, last))
        teach = teacher.teach(batch, slice(None))
        start, stop = int(self._starts[first]), int(self._starts[last])
        for chunk in chunks(stop - start, teacher.decoder.config.vocabulary_size):
            log_probs_nv = teach(chunk).log_probs_ne
            tokens_nk = log_probs_nv.topk(self.k, dim=1).indices
            events = top_events(log_probs_nv, tokens_nk).clamp(min=LEAST_LOG_PROB)
            place = slice(start + chunk.start, start + chunk.stop)
            self._tokens[place] = tokens_nk.to(HOST).numpy()
            self._log_probs[place] = events.to(HOST).numpy()

    def teach(self, batch: TaughtBatch, rows: slice) -> Teach:
        numbers, device = batch.rows_b[rows], self._device
        places = np.concatenate([np.arange(self._starts[n], self._starts[n + 1]) for n in numbers])

        def taught(chunk: slice) -> Taught:
            chosen = places[chunk]
            tokens_nk = moved(torch.from_numpy(self._tokens[chosen].astype(np.int64)), device)
            kept = torch.from_numpy(self._log_probs[chosen].astype(np.float32))
            log_probs = moved(kept, device)
            return Taught(torch.log_softmax(log_probs, dim=1), tokens_nk)

        return taught
