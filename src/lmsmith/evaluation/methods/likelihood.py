"""How likely continuations are, and the kinds answered by it: multiple choice and cloze.

A continuation is a request whose tokens are given, put to the one scheduler. The choices of an item
are replies to one prompt, which is read once; what all prompts of a task begin with is cached.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from lmsmith.evaluation.model import Continuation, EvaluatedModel
from lmsmith.evaluation.rows import Choice, ChoiceRow, ClozeRow
from lmsmith.evaluation.tasks.prompts import Question
from lmsmith.generation.inference import InferenceDecoder
from lmsmith.generation.prefix_cache import common_length
from lmsmith.generation.requests import Request, TokenEvent, TokenLogProb
from lmsmith.generation.scheduler import Failed, Scheduler
from lmsmith.generation.settings import SamplingSettings
from lmsmith.tokenizers import Tokenizer

T = TypeVar("T")

TOKENS_AT_ONCE = 1024
"""Tokens read together: enough for fast products, whose results stay in the processor's caches."""

ROWS_AT_ONCE = 256
"""Sequences read together at most."""

MOST_TOGETHER = 64
"""Continuations of a context in one request."""

CACHE_BYTES = 1 << 30

PAGE = 16
"""Tokens of a page of the cache: a choice copies what its context has begun of one."""

LEAST_HELD = 32
"""Tokens that all prompts of a task must begin with to be cached for the whole of it."""


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of a continuation.

    Attributes:
        log_probs: of its tokens, in nats.
        greedy: whether each of them is the likeliest at its place.
        greedy_allowed: the same when forbidden tokens are excluded at the first place.
    """

    log_probs: tuple[float, ...]
    greedy: bool
    greedy_allowed: bool

    @property
    def total(self) -> float:
        """log P(continuation | context), in nats."""
        return sum(self.log_probs)


class LikelihoodReader:
    """Reads continuations; keeps a prefix that many calls share.

    Args:
        forbidden: tokens that `Likelihood.greedy_allowed` leaves out at the first place.
    """

    def __init__(self, model: InferenceDecoder, forbidden: Sequence[int] = ()) -> None:
        self._scheduler = Scheduler(
            model,
            None,
            cache_bytes=CACHE_BYTES,
            rows=ROWS_AT_ONCE,
            kept_rows=ROWS_AT_ONCE,
            prompt_tokens=TOKENS_AT_ONCE,
            page=PAGE,
            grows=True,
        )
        self._bias = dict.fromkeys(forbidden, -math.inf)
        self.cache_prefix = self._scheduler.cache_prefix

    @property
    def tokens_read(self) -> int:
        """Tokens read since the reader was made."""
        return self._scheduler.tokens_read

    def read(
        self, pairs: Sequence[Continuation], on_tokens: Callable[[int], None] | None = None
    ) -> list[Likelihood]:
        """The likelihood of each continuation.

        Args:
            on_tokens: is called with `tokens_read` after each step.
        """
        order = sorted(range(len(pairs)), key=lambda number: pairs[number].context)
        requests: list[Request] = []
        owners: list[list[int]] = []
        settings = functools.cache(
            lambda samples: SamplingSettings(
                max_new_tokens=1 << 30,
                temperature=0.0,
                samples=samples,
                log_probs=True,
                logit_bias=self._bias,
            )
        )
        for context, group in itertools.groupby(order, key=lambda n: pairs[n].context):
            same = list(group)
            for start in range(0, len(same), MOST_TOGETHER):
                part = same[start : start + MOST_TOGETHER]
                forced = tuple(pairs[number].tokens[len(context) :] for number in part)
                requests.append(Request(context, settings(len(part)), forced=forced))
                owners.append(part)
        numbers = self._scheduler.submit_all(requests)
        found: list[list[TokenLogProb]] = [[] for _ in pairs]
        while self._scheduler.busy:
            for event in self._scheduler.step():
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, TokenEvent) and event.log_prob is not None:
                    owner = owners[event.request - numbers[0]][event.sample]
                    found[owner].append(event.log_prob)
            if on_tokens is not None:
                on_tokens(self.tokens_read)
        self._scheduler.forget()
        return [_likelihood(each) for each in found]


def _likelihood(tokens: Sequence[TokenLogProb]) -> Likelihood:
    greedy = [bool(each.greedy) for each in tokens]
    allowed = bool(tokens[0].greedy_allowed) and all(greedy[1:])
    return Likelihood(tuple(each.log_prob for each in tokens), all(greedy), allowed)


def shared_prefix(pairs: Sequence[Continuation]) -> tuple[int, ...]:
    """The tokens that all contexts begin with; none if they are few."""
    return common_prefix([pair.context for pair in pairs])


def common_prefix(prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The tokens that all begin with, the last of none among them; none if they are few."""
    if len(prompts) < 2:
        return ()
    in_order = sorted(map(tuple, prompts))
    shared = common_length(in_order[0], in_order[-1])
    shared = min(shared, min(map(len, in_order)) - 1)
    return in_order[0][:shared] if shared >= LEAST_HELD else ()


class MultipleChoice:
    """Questions with choices, by the likelihood of each choice (Brown et al. 2020, section 2.4).

    The measures, by which the choice with the highest score is taken:

    - ``accuracy``: Σ log P(token | before it), the log-probability of the whole choice;
    - ``accuracy_per_token``, ``_per_character``, ``_per_byte``: the same divided by the choice's
      length, its leading space not counted in characters and bytes;
    - ``accuracy_unconditional``: log P(choice | context) − log P(choice | answer context).

    Choices of the same text are equally right. With several contexts (partial evaluation, Trinh &
    Le 2018) the choices are the same continuation, and only ``accuracy`` is measured.

    Args:
        answer_context: stands before a choice alone; ``accuracy_unconditional`` is measured by it.
    """

    def __init__(
        self,
        model: EvaluatedModel,
        questions: Sequence[Question],
        answer_context: str | None = None,
    ) -> None:
        pairs = model.encode_pairs([pair for each in questions for pair in each.pairs])
        self._reader = LikelihoodReader(model.decoder)
        self._held = shared_prefix(pairs)
        self._reader.cache_prefix(self._held)
        alone = []
        if answer_context is not None:
            choices = [(answer_context, text) for each in questions for _, text in each.pairs]
            alone = model.encode_pairs(choices)
        given, without = iter(pairs), iter(alone)
        self._asked = [
            (each, _taken(given, len(each.choices)), _taken(without, len(each.choices)))
            for each in questions
        ]

    @property
    def tokens(self) -> list[int]:
        """Approximate tokens read for each question: its context once, without what all share,
        and its choices."""
        return [self._cost([*pairs, *alone]) for _, pairs, alone in self._asked]

    def _cost(self, pairs: Sequence[Continuation]) -> int:
        contexts = {pair.context for pair in pairs}
        held = sum(tokens[: len(self._held)] == self._held for tokens in contexts)
        read = sum(map(len, contexts)) - held * len(self._held)
        return max(1, read + sum(pair.scored - 1 for pair in pairs))

    def answer(self, numbers: Sequence[int]) -> Iterator[ChoiceRow]:
        """The rows of the questions of these numbers."""
        asked = [self._asked[number] for number in numbers]
        found = iter(
            self._reader.read([pair for _, pairs, alone in asked for pair in (*pairs, *alone)])
        )
        for question, pairs, alone in asked:
            row = _choice_row(question, _taken(found, len(pairs)), _taken(found, len(alone)))
            row.truncated = max(pair.truncated for pair in pairs)
            yield row


def _taken(values: Iterator[T], count: int) -> list[T]:
    return list(itertools.islice(values, count))


def _choice_row(
    question: Question, given: Sequence[Likelihood], alone: Sequence[Likelihood]
) -> ChoiceRow:
    scores = choice_scores(question.choices, given, alone)
    compared = question.choices
    if len(question.contexts) > 1:
        compared = question.contexts
        scores = {"accuracy": scores["accuracy"]}
    chosen = {name: each.index(max(each)) for name, each in scores.items()}
    choices = [
        Choice(text, round(likelihood.total, 6), len(likelihood.log_probs))
        for text, likelihood in zip(compared, given, strict=True)
    ]
    for choice, likelihood in zip(choices, alone, strict=False):
        choice.alone = round(likelihood.total, 6)
    return ChoiceRow(
        id=question.id,
        shots=list(question.shots),
        prompt=question.plain,
        gold=question.gold,
        chosen=chosen,
        choices=choices,
        scores={n: [round(s, 6) for s in each] for n, each in scores.items()},
        metrics={n: float(compared[c] == compared[question.gold]) for n, c in chosen.items()},
    )


def choice_scores(
    choices: Sequence[str], given: Sequence[Likelihood], alone: Sequence[Likelihood] = ()
) -> dict[str, list[float]]:
    """Each measure's score of each choice.

    Args:
        given: likelihoods of the choices after the context.
        alone: after the answer context; none of the unconditional scores if empty.
    """
    totals = [each.total for each in given]
    lengths = {
        "accuracy": [1.0] * len(choices),
        "accuracy_per_token": [float(len(each.log_probs)) for each in given],
        "accuracy_per_character": [float(len(choice)) for choice in choices],
        "accuracy_per_byte": [float(len(choice.encode())) for choice in choices],
    }
    scores = {
        name: [total / length for total, length in zip(totals, each, strict=True)]
        for name, each in lengths.items()
    }
    if alone:
        scores["accuracy_unconditional"] = [
            total - other.total for total, other in zip(totals, alone, strict=True)
        ]
    return scores


class Cloze:
    """The rest of a text, word for word: LAMBADA (Paperno et al. 2016).

    - ``accuracy``: each token of the target is the likeliest at its place (the whole word);
    - ``accuracy_without_stop_words``: the same where the word may begin with no token that is a
      stop word or no word at all (GPT-2's stop-word filter, section 3.3);
    - ``perplexity``: exp of the mean −log P(target | context), a target counting once.
    """

    def __init__(self, model: EvaluatedModel, questions: Sequence[Question]) -> None:
        self._questions = questions
        self._pairs = model.encode_pairs([pair for each in questions for pair in each.pairs])
        self._reader = LikelihoodReader(model.decoder, stop_word_tokens(model.tokenizer))
        self._reader.cache_prefix(shared_prefix(self._pairs))

    @property
    def tokens(self) -> list[int]:
        """Tokens of each question."""
        return [len(pair.tokens) for pair in self._pairs]

    def answer(self, numbers: Sequence[int]) -> Iterator[ClozeRow]:
        """The rows of the questions of these numbers."""
        pairs = [self._pairs[number] for number in numbers]
        for number, pair, found in zip(numbers, pairs, self._reader.read(pairs), strict=True):
            question = self._questions[number]
            yield ClozeRow(
                id=question.id,
                shots=list(question.shots),
                prompt=question.plain,
                gold=question.choices[0],
                log_prob=round(found.total, 6),
                tokens=pair.scored,
                truncated=pair.truncated,
                metrics={
                    "accuracy": float(found.greedy),
                    "accuracy_without_stop_words": float(found.greedy_allowed),
                    "perplexity": -found.total,
                },
            )


_WORDS = """
a about above after again against all am an and any are as at be because been before being below
between both but by can could did do does doing down during each few for from further had has have
having he her here hers herself him himself his how i if in into is it its itself just me more
most my myself no nor not now of off on once only or other our ours ourselves out over own same
she should so some such than that the their theirs them themselves then there these they this
those through to too under until up us very was we were what when where which while who whom why
will with would you your yours yourself yourselves
"""

STOP_WORDS = frozenset(_WORDS.split())
"""English function words."""


@functools.lru_cache(maxsize=4)
def stop_word_tokens(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Stop words with their leading space, and tokens without letter or digit: no passage ends so.

    A word that merely begins with such a token ("the" + "rapist") is lost to the filter with it.
    """
    found = []
    for token in range(tokenizer.vocabulary_size):
        text = tokenizer.token_bytes(token).decode("utf-8", errors="replace")
        is_stop_word = text.startswith(" ") and text.strip().lower() in STOP_WORDS
        if is_stop_word or not re.search(r"\w", text):
            found.append(token)
    return tuple(found)
