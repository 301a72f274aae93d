"""People's rankings in the data stage: read, and divided between training and testing.

With ``data.rankings_as_conversations`` the best response to every prompt is a conversation too.
Then the split of a conversation is also its ranking's, so that nothing trains on test data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint
from lmsmith.core.progress import Progress
from lmsmith.corpus.cleaning import UnicodeForm, clean_text
from lmsmith.corpus.formats import IrregularPair
from lmsmith.corpus.rows import Conversation, Ranking
from lmsmith.corpus.sources import FilesOnce, rankings_of

RANKINGS_OF = {"comparisons": "train", "validation": "validation", "test": "test"}
"""Split of conversations → the rankings stage's split."""


def read_human_rankings(
    sources: Sequence[str],
    unicode_form: UnicodeForm,
    progress: Progress,
    counts: Counter[str],
    needed: bool = True,
) -> list[Ranking]:
    """All rankings of the sources, cleaned; irregular pairs are left out, counted and warned of.

    Args:
        needed: an error if empty files leave none; else an export in which nobody ranked is fine.

    Raises:
        UserError: bad input, or none is left.
    """
    rankings: list[Ranking] = []
    left_out: list[IrregularPair] = []
    files = FilesOnce()
    for source in sources:
        rankings += rankings_of(source, left_out, files)
    for note in files.notes():
        progress.say(f"data: {note}")
    counts["rankings.read"] = read = len(rankings) + len(left_out)
    counts["rankings.left_out"] = len(left_out)
    if left_out:
        flaws = Counter(irregular.flaw for irregular in left_out).most_common()
        warning = (
            f"{len(left_out):,} of {read:,} rankings left out: "
            f"{', '.join(f'{count:,} {flaw}' for flaw, count in flaws)} "
            f"(the first: {left_out[0].problem})"
        )
        if not rankings:
            raise UserError(f"data.rankings: {warning}", "Fix these rows, or add rankings.")
        progress.say(f"data: {warning}")
    if sources and not rankings:
        if needed or not files.empty:
            raise UserError(f"{', '.join(sources)}: no rankings in it", "Add rankings.")
        progress.say("data: no rankings of people; they are made as if data.rankings were not set")
    return [_cleaned(ranking, unicode_form) for ranking in rankings]


def _cleaned(ranking: Ranking, unicode_form: UnicodeForm) -> Ranking:
    """The ranking with its texts cleaned as those of conversations."""

    def clean(text: str) -> str:
        return clean_text(text, unicode_form)

    prompt = [{**message, "content": clean(message["content"])} for message in ranking.prompt]
    return replace(ranking, prompt=prompt, responses=list(map(clean, ranking.responses)))


def best_conversations(
    rankings: Iterable[Ranking], others: Iterable[Conversation], counts: Counter[str]
) -> list[Conversation]:
    """Each ranking's prompt with its best response, the first of equal ones.

    It is dropped if it only begins another of them, or one of `others` (of a dialogue ranked turn
    by turn, the whole is enough), or if the best response is empty.
    """
    found = []
    for ranking in rankings:
        best = ranking.responses[ranking.ranks.index(min(ranking.ranks))]
        if best.strip():
            messages = [*ranking.prompt, {"role": "assistant", "content": best}]
            found.append(Conversation(f"{ranking.id}/best", messages))
        else:
            counts["dropped.empty_best_response"] += 1
    beginnings: set[str] = set()
    for conversation in (*found, *others):
        beginnings.update(_beginnings(conversation)[:-1])
    kept = [each for each in found if _beginnings(each)[-1] not in beginnings]
    counts["dropped.contained"] = len(found) - len(kept)
    return kept


def divide_rankings(
    rankings: Sequence[Ranking], splits: Sequence[str | None], counts: Counter[str]
) -> list[Ranking]:
    """The rankings whose conversation's split trains or tests a reward model, marked so.

    Raises:
        UserError: a ranking names a split already.
    """
    divided = []
    for ranking, split in zip(rankings, splits, strict=True):
        if ranking.split is not None:
            raise UserError(
                f"data.rankings_as_conversations divides the rankings, but {ranking.id!r} of "
                f"{ranking.source} says that its 'split' is {ranking.split}",
                "Take 'split' out of the rows, or set data.rankings_as_conversations = false.",
            )
        if split in RANKINGS_OF:
            divided.append(replace(ranking, split=RANKINGS_OF[split]))
    found = Counter(ranking.split for ranking in divided)
    counts.update({f"rankings.{name}": found[name] for name in RANKINGS_OF.values()})
    return divided


def _beginnings(conversation: Conversation) -> list[str]:
    """Fingerprints of the first message, of the first two, …, of all."""
    found = [""]
    for message in conversation.messages:
        found.append(fingerprint([found[-1], message]))
    return found[1:]
