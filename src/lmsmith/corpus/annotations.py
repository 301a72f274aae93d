"""What people judged in other programs: exports of Argilla and Label Studio, and QA-Feedback.

- Argilla 2: records of ``Dataset.records.to_json`` or ``to_list``, nested (``fields`` and
  ``responses``) or flattened (``QUESTION.responses``). Suggestions come from models and are not
  read; drafts and discarded responses are not read either.
- Label Studio: tasks of its JSON export (``data`` and ``annotations``). Cancelled annotations are
  not read.
- QA-Feedback (Wu et al. 2023): a question, four predictions, and six comparisons of them.

A ranking, and in Label Studio a choice of left or right, is a ranking here. A text that somebody
wrote is a demonstration, unless its question asks for a comment. Ratings on any scale that one
person gave to several responses to one prompt, on one question, are a ranking with ties; a
single rating puts nothing in an order. Of nobody, only those of one annotation are one person's.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from lmsmith.core.errors import UserError
from lmsmith.core.files import fingerprint
from lmsmith.corpus.messages import name_of_type, validate_prompt

Row = Mapping[str, Any]

PROMPTS = (
    "prompt",
    "instruction",
    "question",
    "query",
    "messages",
    "conversation",
    "chat",
    "dialogue",
    "input",
    "user",
    "text",
)
"""Names of the field that holds the prompt, the surest first."""

_COMMENT = re.compile(r"comment|reason|note|feedback|explan|rational|justif|why|remark", re.I)
"""Questions whose answers are about responses, and no response."""

_WRITTEN = re.compile(
    "answer|response|completion|correct|demonstrat|rewrit|better|improved|ideal|edit|output|reply",
    re.I,
)
_LABEL = re.compile(r"quality|rating|label|class|categor|prefer|score|relevan|choice|which", re.I)
"""Argilla's export does not say which questions ask for a text: those that are named as the first
are, unless they are named as the second too."""

_SPEAKERS = {"user": "user human prompter", "assistant": "assistant gpt bot model ai agent"}
_ROLES = {name: role for role, names in _SPEAKERS.items() for name in names.split()}
_ROLES["system"] = "system"

_PAIRS = tuple(itertools.combinations(range(1, 5), 2))
"""The order of QA-Feedback's comparisons; read so, no preference goes round in a circle."""

_PAIR_RANKS = {0: [1, 1], 1: [1, 2], 2: [2, 1]}


class Annotated(NamedTuple):
    """A ranking, or a demonstration as the only response, and who made it.

    Attributes:
        id: the same whenever the same file is read.
        where: the row, as it opens an error.
        ranks: 1 is best, equal numbers are ties.
        labeler: empty where the file names nobody.
    """

    kind: Literal["ranking", "demonstration"]
    id: str
    where: str
    prompt: list[dict[str, str]]
    responses: list[str]
    ranks: list[int]
    labeler: str


@dataclass
class _Rated:
    """Ratings of one person, on one question, of responses to one prompt."""

    where: str
    prompt: list[dict[str, str]]
    labeler: str
    values: dict[str, float] = field(default_factory=dict)


def is_annotated(row: Row) -> bool:
    """Whether a row is of one of these programs."""
    return _is_nested(row) or _is_flat(row) or _is_task(row) or _is_qa(row)


class AnnotationReader:
    """Reads the rows of one file: `of` each of them, then `rest` for what several rows tell."""

    def __init__(self) -> None:
        self._rated: dict[str, _Rated] = {}

    def of(self, row: Row, where: str) -> Iterator[Annotated]:
        """The rankings and demonstrations of a row.

        Raises:
            UserError: naming the file and the row.
        """
        if _is_qa(row):
            yield from _qa(row, where)
        elif _is_task(row):
            yield from self._task(row, where)
        else:
            yield from self._record(row, where)

    def rest(self) -> Iterator[Annotated]:
        """The rankings that ratings make, in the order of their first rows."""
        for key, rated in self._rated.items():
            if len(rated.values) >= 2:
                order = sorted(set(rated.values.values()), reverse=True)
                ranks = [order.index(value) + 1 for value in rated.values.values()]
                responses = list(rated.values)
                yield Annotated(
                    "ranking", key, rated.where, rated.prompt, responses, ranks, rated.labeler
                )

    def _rate(
        self, response: str, value: object, question: str, prompt: list[dict[str, str]], by: _By
    ) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"{by.where}: the rating {value!r} of {question!r} is no number")
        nobodys = [] if by.labeler else [by.annotation]  # of which two may be two people's
        key = fingerprint(["ratings", by.labeler, prompt, question, *nobodys])
        rated = self._rated.setdefault(key, _Rated(by.where, prompt, by.labeler))
        rated.values[response] = value

    def _record(self, row: Row, where: str) -> Iterator[Annotated]:
        """A record of Argilla."""
        fields = row["fields"] if _is_nested(row) else _flat_fields(row)
        if not isinstance(fields, dict):
            raise UserError(f"{where}: 'fields' must be an object, not {name_of_type(fields)}")
        answers = list(_responses(row, where))
        if not answers:
            return
        name = _prompt_name(fields, where)
        prompt = _prompt(fields[name], where)
        texts = {key: text for key, text in fields.items() if key != name and _is_text(text)}
        record = str(row.get("id") or fingerprint(row))
        for question, value, labeler, number in answers:
            annotation = f"{record}/{number}"
            by = _By(where, labeler, question, str(row.get("id") or ""), annotation)
            if isinstance(value, list):
                ranked = _argilla_ranks(value, question, texts, where)
                if ranked is not None:
                    found = {_field(each, texts, where): rank for each, rank in ranked.items()}
                    yield by.ranking(prompt, [texts[each] for each in found], [*found.values()])
            elif isinstance(value, str):
                chosen = _same(value, texts)
                if chosen is not None and len(texts) == 2:
                    ranks = [1 if each == chosen else 2 for each in texts]
                    yield by.ranking(prompt, [*texts.values()], ranks)
                elif chosen is None and value.strip() and _asks_for_text(question):
                    yield by.demonstration(prompt, value)
            elif value is not None:
                rated, about = _rated_field(question, texts)
                if rated is not None:
                    self._rate(texts[rated], value, about, prompt, by)

    def _task(self, row: Row, where: str) -> Iterator[Annotated]:
        """A task of Label Studio."""
        data, annotations = row["data"], row["annotations"]
        if not isinstance(data, dict) or not isinstance(annotations, list):
            raise UserError(f"{where}: 'data' must be an object, and 'annotations' a list")
        kept = [
            each for each in annotations if isinstance(each, dict) and not each.get("was_cancelled")
        ]
        if not any(each.get("result") for each in kept):
            return
        asked = _prompt_name(data, where)
        prompt = _prompt(data[asked], where)
        texts = {key: text for key, text in data.items() if key != asked and _is_text(text)}
        task = str(row.get("id") or fingerprint(row))
        for number, annotation in enumerate(kept):
            mark = f"{task}/{annotation.get('id') or f'#{number}'}"
            labeler = _annotator(annotation.get("completed_by"))
            results = annotation.get("result")
            if not isinstance(results, list):
                raise UserError(f"{where}: 'result' must be a list, not {name_of_type(results)}")
            for result in results:
                value = result.get("value") if isinstance(result, dict) else None
                if not isinstance(value, dict):
                    raise UserError(f"{where}: a result must be an object with a 'value'")
                question = str(result.get("from_name") or result.get("type"))
                name = f"{row.get('id', '')}/{annotation.get('id')}"
                by = _By(where, labeler, question, name, mark)
                if result.get("type") == "pairwise":
                    pair = _pair(str(result.get("to_name")), texts, where)
                    yield by.ranking(prompt, pair, _selected(value.get("selected"), where))
                elif result.get("type") == "ranker":
                    items = _items(data, where)
                    ranks = _ranker(value.get("ranker"), where)
                    if len(ranks) >= 2:
                        responses = [_item(items, each, where) for each in ranks]
                        yield by.ranking(prompt, responses, [*ranks.values()])
                elif result.get("type") == "textarea" and not _COMMENT.search(question):
                    said = value.get("text")
                    lines = [said] if isinstance(said, str) else said
                    if not isinstance(lines, list) or not all(isinstance(t, str) for t in lines):
                        raise UserError(f"{where}: the 'text' of a textarea must be texts")
                    if text := "\n".join(lines).strip():
                        yield by.demonstration(prompt, text)
                elif result.get("type") == "rating":
                    target = _same(str(result.get("to_name")), texts)
                    rated, about = _rated_field(question, texts)
                    rated = target or rated
                    if rated is not None:
                        self._rate(texts[rated], value.get("rating"), about, prompt, by)


@dataclass(frozen=True)
class _By:
    """Who answered which question, in which row, and in which of its annotations."""

    where: str
    labeler: str
    question: str
    row: str
    annotation: str = ""

    def ranking(self, prompt: Any, responses: Sequence[str], ranks: Sequence[int]) -> Annotated:
        if len(responses) < 2:
            raise UserError(f"{self.where}: {self.question!r} ranks fewer than two responses")
        return self._made("ranking", prompt, list(responses), list(ranks))

    def demonstration(self, prompt: Any, text: str) -> Annotated:
        return self._made("demonstration", prompt, [text], [1])

    def _made(self, kind: Any, prompt: Any, responses: list[str], ranks: list[int]) -> Annotated:
        key = [kind, self.row, self.question, self.labeler, prompt, responses, ranks]
        return Annotated(kind, fingerprint(key), self.where, prompt, responses, ranks, self.labeler)


# Fields


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _same(name: str, texts: Mapping[str, Any]) -> str | None:
    """The field of that name, written with other separators or capitals too."""
    if name in texts:
        return name
    return next((each for each in texts if _plain(each) == _plain(name) and _plain(each)), None)


def _field(name: str, texts: Mapping[str, str], where: str) -> str:
    found = _same(name, texts)
    if found is None:
        known = ", ".join(map(repr, texts)) or "none"
        raise UserError(
            f"{where}: ranks {name!r}, which is no field with a text; there are: {known}",
            "name the values of the question as the fields of the responses",
        )
    return found


def _prompt_name(fields: Mapping[str, Any], where: str) -> str:
    """The field that holds the prompt."""
    for name in PROMPTS:
        found = _same(name, fields)
        if found is not None and fields[found]:
            return found
    known = ", ".join(map(repr, fields)) or "none"
    raise UserError(
        f"{where}: no field with a prompt; there are: {known}",
        f"name it {', '.join(PROMPTS[:-1])} or {PROMPTS[-1]}",
    )


def _prompt(value: object, where: str) -> list[dict[str, str]]:
    """A prompt: a text, messages, or turns of an author and a text."""
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        turns = []
        for each in value:
            said = next((each[k] for k in ("content", "text", "value") if k in each), None)
            by = next((each[k] for k in ("role", "author", "from") if k in each), None)
            role = _ROLES.get(str(by).casefold())
            if role is None or not isinstance(said, str):
                raise UserError(
                    f"{where}: a message of the prompt needs a role and a text",
                    f"roles are {', '.join(_ROLES)}",
                )
            turns.append({"role": role, "content": said})
        return validate_prompt(turns, where)
    if not isinstance(value, str):
        raise UserError(f"{where}: the prompt must be text or messages, not {name_of_type(value)}")
    return validate_prompt(value, where)


def _rated_field(question: str, texts: Mapping[str, str]) -> tuple[str | None, str]:
    """The response that a rating is of, and the question without the response's name."""
    named = [each for each in texts if _plain(each) in _plain(question)]
    if named:
        found = max(named, key=len)
        return found, _plain(question).replace(_plain(found), "")
    return (next(iter(texts)) if len(texts) == 1 else None), _plain(question)


# Argilla


def _is_nested(row: Row) -> bool:
    return isinstance(row.get("fields"), dict) and "responses" in row


def _is_flat(row: Row) -> bool:
    return any(key.endswith(".responses.users") for key in row)


def _flat_fields(row: Row) -> dict[str, Any]:
    about = ("id", "_server_id", "status", "score")
    return {key: value for key, value in row.items() if key not in about and "." not in key}


def _responses(row: Row, where: str) -> Iterator[tuple[str, Any, str, int]]:
    """(question, value, user, place among the responses) of all that were submitted."""
    if not _is_nested(row):
        for key in [key for key in row if key.endswith(".responses")]:
            values = row[key] or []
            count = len(values) if isinstance(values, list) else 0
            users = row.get(f"{key}.users") or [""] * count
            states = row.get(f"{key}.status") or ["submitted"] * count
            if not all(isinstance(each, list) for each in (values, users, states)):
                raise UserError(f"{where}: {key!r}, its users and its status must be lists")
            if not len(values) == len(users) == len(states):
                raise UserError(f"{where}: {key!r} and its users are not equally many")
            for number, (value, user, state) in enumerate(zip(values, users, states, strict=True)):
                if state in ("submitted", None):
                    yield key.removesuffix(".responses"), value, str(user or ""), number
        return
    found = row["responses"] or {}
    if isinstance(found, dict):
        for question, answers in found.items():
            if not isinstance(answers, list):
                raise UserError(f"{where}: the responses to {question!r} must be a list")
            for number, each in enumerate(answers):
                if not isinstance(each, dict) or "value" not in each:
                    raise UserError(f"{where}: a response to {question!r} has no 'value'")
                if each.get("status") in ("submitted", None):
                    yield question, each["value"], str(each.get("user_id") or ""), number
        return
    for number, each in enumerate(found if isinstance(found, list) else [found]):
        if not isinstance(each, dict) or not isinstance(each.get("values"), dict):
            raise UserError(f"{where}: a response must be an object with 'values'")
        if each.get("status") in ("submitted", None):
            for question, answer in each["values"].items():
                value = answer.get("value") if isinstance(answer, dict) else answer
                yield question, value, str(each.get("user_id") or ""), number


def _asks_for_text(question: str) -> bool:
    about = _COMMENT.search(question) or _LABEL.search(question)
    return bool(_WRITTEN.search(question)) and not about


def _argilla_ranks(
    value: list[Any], question: str, texts: Mapping[str, str], where: str
) -> dict[str, int] | None:
    """Option → rank: those of a ranking, or the places of an ordered list; None for labels."""
    if value and all(isinstance(each, dict) and "value" in each for each in value):
        ranked = {str(each["value"]): each.get("rank") for each in value}
        if all(type(rank) is int and rank >= 1 for rank in ranked.values()):
            return {name: rank for name, rank in ranked.items() if rank}
        if all(rank is None for rank in ranked.values()):
            return {name: place for place, name in enumerate(ranked, start=1)}
        raise UserError(f"{where}: ranks in {question!r} must be whole numbers from 1")
    names = [each for each in value if isinstance(each, str)]
    if len(names) == len(value) >= 2 and any(_same(name, texts) for name in names):
        return {name: place for place, name in enumerate(value, start=1)}
    return None


# Label Studio


def _is_task(row: Row) -> bool:
    return "annotations" in row and "data" in row


def _annotator(value: object) -> str:
    """A labeler's e-mail address, or ``label-studio-`` and their number."""
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    if value is None or value == "":
        return ""
    return value if isinstance(value, str) and "@" in value else f"label-studio-{value}"


def _pair(names: str, texts: Mapping[str, str], where: str) -> list[str]:
    """The left and the right text of a comparison."""
    named = [_same(name.strip(), texts) for name in names.split(",")]
    found = [texts[name] for name in named if name is not None]
    if len(found) != 2:
        found = list(texts.values())  # tags may be called otherwise than the data
    if len(found) != 2:
        known = ", ".join(map(repr, texts)) or "none"
        raise UserError(
            f"{where}: compares {names!r}; two texts beside the prompt were expected, not {known}",
            "name the tags as the data, or leave other texts out",
        )
    return found


def _selected(side: object, where: str) -> list[int]:
    if side not in ("left", "right"):
        raise UserError(f"{where}: selected {side!r}; expected 'left' or 'right'")
    return [1, 2] if side == "left" else [2, 1]


def _items(data: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The list that was ranked."""
    for value in data.values():
        if not isinstance(value, list) or not value:
            continue
        if all(isinstance(each, dict) and "id" in each for each in value):
            return value
    raise UserError(f"{where}: a ranking, but no list of items with an 'id' in 'data'")


def _item(items: Sequence[Mapping[str, Any]], name: str, where: str) -> str:
    for each in items:
        if str(each["id"]) == name:
            for key in ("body", "text", "html", "title"):
                if _is_text(each.get(key)):
                    return str(each[key])
            raise UserError(f"{where}: the item {name!r} has no 'body'")
    raise UserError(f"{where}: ranks the item {name!r}, which is not in 'data'")


def _ranker(value: object, where: str) -> dict[str, int]:
    """Id of an item → its rank; items in the bucket ``_`` were left where they are."""
    if isinstance(value, list):
        return {str(name): place for place, name in enumerate(value, start=1)}
    if not isinstance(value, dict) or not all(isinstance(each, list) for each in value.values()):
        raise UserError(f"{where}: a ranker's value must be a list of ids, or buckets of them")
    buckets = {name: ids for name, ids in value.items() if name != "_"}
    numbered = {name: re.search(r"\d+", name) for name in buckets}
    if len(buckets) == 1:
        (only,) = buckets.values()
        return {str(name): place for place, name in enumerate(only, start=1)}
    if not all(numbered.values()):
        raise UserError(
            f"{where}: the buckets {', '.join(map(repr, buckets))} have no order",
            "use one bucket, or name buckets by numbers, the lowest the best",
        )
    numbers = {bucket: int(match[0]) for bucket, match in numbered.items() if match is not None}
    order = sorted({number for bucket, number in numbers.items() if buckets[bucket]})
    return {
        str(name): order.index(number) + 1
        for bucket, number in numbers.items()
        for name in buckets[bucket]
    }


# QA-Feedback


def _is_qa(row: Row) -> bool:
    return "prediction 1" in row and "preference" in row and "question" in row


def _is_passage(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(t, str) for t in value)


def _qa(row: Row, where: str) -> Iterator[Annotated]:
    """Six comparisons, and the corrected answer: the passages stand before the question."""
    passages, question = row.get("passages") or [], row["question"]
    if not isinstance(question, str):
        raise UserError(f"{where}: 'question' must be text, not {name_of_type(question)}")
    if not isinstance(passages, list) or not all(map(_is_passage, passages)):
        raise UserError(f"{where}: 'passages' must be lists of a title and lines")
    told = [f"{title}\n{' '.join(lines)}" for title, *lines in passages]
    prompt = validate_prompt("\n\n".join([*told, question]), where)
    by = _By(where, "", "preference", "")
    preference = row["preference"]
    if not isinstance(preference, list) or len(preference) != len(_PAIRS):
        raise UserError(f"{where}: 'preference' must hold {len(_PAIRS)} comparisons")
    for pair, verdict in zip(_PAIRS, preference, strict=True):
        texts = [row.get(f"prediction {number}") for number in pair]
        if type(verdict) is not int or verdict not in _PAIR_RANKS or not all(map(_is_text, texts)):
            raise UserError(f"{where}: a comparison must be 0, 1 or 2, of two texts")
        yield by.ranking(prompt, [str(text).strip() for text in texts], _PAIR_RANKS[verdict])
    feedback = row.get("feedback")
    corrected = feedback.get("corrected-prediction") if isinstance(feedback, dict) else ""
    if _is_text(corrected):
        yield by.demonstration(prompt, str(corrected).strip())
