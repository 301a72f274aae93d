"""Our models inside lm-evaluation-harness, as its model ``lmsmith``.

lm-eval (0.4.13) finds no models of other packages by entry points, so importing this module is what
registers ours::

    import lmsmith.evaluation.harness
    lm_eval.simple_evaluate(model="lmsmith", model_args="pretrained=runs/small", tasks=["arc_easy"])

and ``python -m lmsmith.evaluation.harness run --model lmsmith …`` is lm-eval's own command with it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from lmsmith.core.errors import UserError, needs_extra
from lmsmith.core.progress import Progress, QuietProgress
from lmsmith.core.recipe import MachineConfig
from lmsmith.evaluation.methods.likelihood import (
    Likelihood,
    LikelihoodReader,
    common_prefix,
    shared_prefix,
)
from lmsmith.evaluation.methods.perplexity import window_pairs
from lmsmith.evaluation.methods.writing import STREAMS_AN_ITEM
from lmsmith.evaluation.model import Continuation, EvaluatedModel, load_evaluated_model
from lmsmith.generation.engine import Engine, answer
from lmsmith.generation.requests import Request, until_stop
from lmsmith.generation.settings import SamplingSettings
from lmsmith.runs.signals import stop_if_requested
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.chat_format import JINJA_TEMPLATE
from lmsmith.tokenizers.template import Rendering
from lmsmith.training.machine import prepare_process

with needs_extra("harness"):
    from lm_eval.api.model import LM
    from lm_eval.api.registry import model_registry
    from lm_eval.models.utils import normalize_gen_kwargs

TOKENS_A_BATCH = 16_384
"""Tokens of pairs that are read together; a kill loses no more."""

WRITTEN_TOGETHER = 128
"""Requests whose texts are handed over together."""

DEFAULT_TOKENS = 256
"""Length of an answer whose task names none, as in lm-eval."""


class HarnessModel(LM):  # type: ignore[misc]
    """A model of ours as lm-eval asks it.

    Log-likelihoods are in nats. Prompts of more than the context holds lose their beginning, as
    they do in lm-eval's own classes; `truncated` counts them.

    Args:
        pretrained: a run, a model folder, a Hugging Face folder, a GGUF file or a registered name.
        precision: of matrix products.
        threads: of one operation; 0 for all cores.
        add_bos_token: whether texts begin with the start of text; as the tokenizer does if None.
        seed: of answers that are drawn.
        subject: the model, if it is read already.
        batch_size, max_batch_size, device: lm-eval gives them; batches are by tokens here.

    Raises:
        UserError: there is no such model.
    """

    def __init__(
        self,
        pretrained: str = "",
        precision: Literal["auto", "bf16", "fp32"] = "auto",
        threads: int = 0,
        add_bos_token: bool | None = None,
        seed: int = 0,
        subject: EvaluatedModel | None = None,
        progress: Progress | None = None,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        if subject is None:
            if not pretrained:
                raise UserError("no model", "name it: --model_args pretrained=runs/small")
            machine = prepare_process(MachineConfig(precision=precision, threads=int(threads)))
            subject = load_evaluated_model(pretrained, machine, begins=add_bos_token)
        self.subject = subject
        self.truncated = 0
        self._seed = int(seed)
        self._progress = progress or QuietProgress()
        self._rendered: dict[str, Rendering] = {}
        self._chats = False

    @property
    def tokenizer_name(self) -> str:
        """Tells requests of different tokenizers apart in lm-eval's cache."""
        return f"{self.subject.name}-{self.subject.fingerprint}".replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """The model in lm-eval's results."""
        return {
            "model_num_parameters": self.subject.parameters,
            "model_dtype": self.subject.precision,
            "model_sha": self.subject.fingerprint,
        }

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's own template, which is the only one it is asked by."""
        self._chats = bool(chat_template)
        own = self.subject.tokenizer.template
        return (own.source if own else JINJA_TEMPLATE) if chat_template else None

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the model's template writes it.

        Without ``add_generation_prompt`` it ends with the last message's content, to go on from.

        Raises:
            UserError: the template cannot write it.
        """
        rendering = self.subject.tokenizer.render_chat(chat_history, ask=add_generation_prompt)
        if not add_generation_prompt:
            last = chat_history[-1]["content"]
            place = rendering.text.rfind(last.strip())
            if place < 0:
                raise UserError(
                    "the model's chat template rewrites messages, so that the answer's beginning "
                    "(gen_prefix) cannot be found",
                    "leave --chat out",
                )
            whole = rendering.text.startswith(last.lstrip(), place)
            kept = last.lstrip() if whole else last.strip()
            rendering = rendering.until(place + len(kept))
        self._rendered[rendering.text] = rendering
        return rendering.text

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log P(continuation | context), whether it is the greedy one) of each request."""
        pairs = self._pairs([each.args for each in requests])
        self.truncated += sum(pair.truncated > 0 for pair in pairs)
        found: dict[int, tuple[float, bool]] = {}
        for numbers, read in self._read("log-likelihoods", pairs):
            for number, each in zip(numbers, read, strict=True):
                found[number] = (each.total, each.greedy)
                self.cache_hook.add_partial("loglikelihood", requests[number].args, found[number])
            stop_if_requested()
        return [found[number] for number in range(len(pairs))]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """log P of each text: every token once, in windows of the whole context one after another.

        The last window is filled up with what stands before it.
        """
        tokenizer, pairs = self.subject.tokenizer, list[Continuation]()
        owners, left = list[int](), list[int]()
        encoded = tokenizer.encode_batch([each.args[0] for each in requests])
        for number, tokens in enumerate(encoded):
            windows = window_pairs([tokenizer.start_of_text, *tokens], self.subject.context, 0.0)
            pairs += windows
            owners += [number] * len(windows)
            left.append(len(windows))
        sums = [0.0] * len(requests)
        for numbers, read in self._read("whole texts", pairs):
            for number, each in zip(numbers, read, strict=True):
                owner = owners[number]
                sums[owner] += each.total
                left[owner] -= 1
                if not left[owner]:
                    args = requests[owner].args
                    self.cache_hook.add_partial("loglikelihood_rolling", args, sums[owner])
            stop_if_requested()
        return sums

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Texts up to their stops; greedy, or drawn where the task says so."""
        asked = [self._to_write(number, *each.args) for number, each in enumerate(requests)]
        engine = Engine(self.subject.decoder, tokenizer=self.subject.tokenizer)
        prefix = common_prefix([each.prompt for each in asked])
        if len(prefix) < self.subject.context:
            engine.cache_prefix(prefix)
        texts: list[str] = []
        self._progress.begin("texts", len(asked), "requests")
        for start in range(0, len(asked), WRITTEN_TOGETHER):
            together = asked[start : start + WRITTEN_TOGETHER]
            replies = answer(engine, together, lambda _: stop_if_requested())
            for request, (reply,) in zip(together, replies, strict=True):
                args = requests[len(texts)].args
                stops, tokenizer = request.settings.stop, self.subject.tokenizer
                texts.append(written(tokenizer, reply.tokens, stops, request.prompt))
                self.cache_hook.add_partial("generate_until", args, texts[-1])
            self._progress.update(len(texts))
        self._progress.end()
        return texts

    def _pairs(self, given: Sequence[tuple[str, str]]) -> list[Continuation]:
        """A continuation keeps the spaces that lm-eval gives it, also after a chat's prompt."""
        renderings = [self._rendering(context) for context, _ in given]
        plain = [number for number, each in enumerate(renderings) if each is None]
        encoded = iter(self.subject.encode_pairs([given[number] for number in plain]))
        return [
            next(encoded) if rendering is None else self._chat_pair(rendering, continuation)
            for rendering, (_, continuation) in zip(renderings, given, strict=True)
        ]

    def _chat_pair(self, rendering: Rendering, continuation: str) -> Continuation:
        """Spaces at the prompt's end count as the continuation's: lm-eval's rule for any text."""
        tokenizer = self.subject.tokenizer
        before = tokenizer.encode_rendered(rendering.until(len(rendering.text.rstrip())))
        whole = tokenizer.encode_rendered(rendering, continuation)
        return self.subject.continuation([*self._start(whole), *whole], len(whole) - len(before))

    def _rendering(self, context: str) -> Rendering | None:
        """Where a prompt's control tokens are; None for plain text.

        A prompt from lm-eval's cache of requests was rendered by another process: the tokens'
        names in it are taken for the tokens, as transformers' tokenizers do with any text.
        """
        known = self._rendered.get(context)
        if known is None and self._chats and context:
            names = sorted(self.subject.tokenizer.shielded, key=len, reverse=True)
            found = re.finditer("|".join(map(re.escape, names)), context)
            return Rendering(context, None, [match.span() for match in found])
        return known

    def _start(self, tokens: Sequence[int]) -> list[int]:
        """A template may write the start of text itself."""
        start = list(self.subject.start)
        return start if [*tokens[: len(start)]] != start else []

    def _read(
        self, title: str, pairs: Sequence[Continuation]
    ) -> Iterator[tuple[list[int], list[Likelihood]]]:
        """Numbers of pairs and their likelihoods, those with the same beginning together."""
        reader = LikelihoodReader(self.subject.decoder)
        reader.cache_prefix(shared_prefix(pairs))
        self._progress.begin(title, len(pairs), "requests")
        order = sorted(range(len(pairs)), key=lambda number: pairs[number].tokens)
        done = 0
        while done < len(order):
            end, size = done, 0
            while end < len(order) and (end == done or size < TOKENS_A_BATCH):
                size += len(pairs[order[end]].tokens)
                end += 1
            numbers = order[done:end]
            yield numbers, reader.read([pairs[number] for number in numbers])
            done = end
            self._progress.update(done)
        self._progress.end()

    def _to_write(self, number: int, context: str, given: Mapping[str, Any]) -> Request:
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), DEFAULT_TOKENS))
        subject, room = self.subject, int(kwargs["max_gen_toks"])
        if room >= subject.context:
            if not number:
                self._progress.say(
                    f"answers have {subject.context // 2} tokens at most, not {room}: "
                    f"the model's context is {subject.context}"
                )
            room = subject.context // 2
        rendering = self._rendering(context)
        if rendering is None:
            (prompt,) = subject.encode_contexts([context])
        else:
            tokens = subject.tokenizer.encode_rendered(rendering)
            prompt = [*self._start(tokens), *tokens]
        kept = prompt[-(subject.context - room) :]
        self.truncated += len(kept) < len(prompt)
        settings = SamplingSettings(
            max_new_tokens=room,
            temperature=float(kwargs.get("temperature", 1.0)) if kwargs["do_sample"] else 0.0,
            top_p=float(kwargs.get("top_p", 1.0)),
            top_k=int(kwargs.get("top_k", 0)),
            min_p=float(kwargs.get("min_p", 0.0)),
            repetition_penalty=float(kwargs.get("repetition_penalty", 1.0)),
            stop_tokens=subject.tokenizer.stop_tokens,
            seed=self._seed,
            stop=tuple(stop for stop in kwargs["until"] if stop),
        )
        return Request(kept, settings, f"item {number}", number * STREAMS_AN_ITEM)


def written(
    tokenizer: Tokenizer, tokens: Sequence[int], stops: Sequence[str], after: Sequence[int] = ()
) -> str:
    """A reply's text as lm-eval has it: a character that it leaves unfinished is U+FFFD."""
    return "".join(until_stop(iter([tokenizer.decode(tokens, after=after)]), stops))


if "lmsmith" not in model_registry:
    model_registry.register("lmsmith", target="lmsmith.evaluation.harness:HarnessModel")

if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
