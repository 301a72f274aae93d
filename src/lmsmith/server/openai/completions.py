"""``POST /v1/completions``: the continuation of texts or of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from lmsmith.generation.requests import Reply, TokenEvent, TokenLogProb
from lmsmith.server.auth import visitor_of
from lmsmith.server.engine import AsyncEngine, Generation
from lmsmith.server.requests import CompletionBody, parse_completion
from lmsmith.server.stream import ReplyFormat, finish_reason, respond, token_text, usage
from lmsmith.tokenizers import StreamDecoder, Tokenizer

router = APIRouter()


@router.post("/v1/completions")
async def completions(request: Request, body: CompletionBody) -> Response:
    """Continuations, whole or as a stream; with ``echo`` after their prompts."""
    engine: AsyncEngine = request.app.state.engine
    salt = visitor_of(request).cache_salt
    parsed = await parse_completion(body, engine.models, engine.limits, salt)
    generation = engine.submit(parsed)
    return await respond(request, generation, _CompletionFormat(generation, body), body)


class _Offsets:
    """Positions of tokens in a text, in characters, one after another.

    A token in the midst of a character begins where the character does.

    Args:
        tokenizer: of the tokens.
        after: tokens that the text goes on from.
    """

    def __init__(self, tokenizer: Tokenizer, after: Sequence[int] = ()) -> None:
        self._tokenizer, self._decoder = tokenizer, StreamDecoder(tokenizer, after)
        self._at = 0

    def next(self, token: int) -> int:
        at = self._at
        if token < self._tokenizer.vocabulary_size:
            self._at += len(self._decoder.push(token))
        return at


@dataclass
class _Sent:
    """How much of a reply was sent.

    Attributes:
        offsets: of its tokens, and of its prompt's where that is echoed.
        tokens: of the reply, whose log-probabilities were sent.
        begun: whether anything was.
    """

    offsets: _Offsets
    tokens: int = 0
    begun: bool = False


class _CompletionFormat(ReplyFormat):
    """Replies as completion choices."""

    object = chunk_object = "text_completion"

    def __init__(self, generation: Generation, body: CompletionBody) -> None:
        super().__init__(generation)
        self._tokenizer = generation.model.tokenizer
        self._prompts_only = body.max_tokens == 0
        self._echo, self._wants_log_probs = bool(body.echo), body.logprobs is not None
        self._sent = {
            (number, sample): _Sent(
                _Offsets(self._tokenizer, () if self._echo else each.request.prompt)
            )
            for number, each in enumerate(generation.prompts)
            for sample in range(len(each.replies))
        }

    def choices(self) -> list[dict[str, Any]]:
        return [
            self._choice(*place, self.generation.prompts[place[0]].replies[place[1]].text)
            for place in self._sent
        ]

    def new_choices(self, prompt: int, event: TokenEvent) -> Iterator[dict[str, Any]]:
        has_text = event.text and not self._prompts_only
        begins = self._echo and not self._sent[prompt, event.sample].begun
        if has_text or event.finish is not None or begins:
            yield self._choice(prompt, event.sample, event.text)

    def usage(self) -> dict[str, Any]:
        found = self.generation
        new = 0 if self._prompts_only else found.new_tokens
        return usage(found.prompt_tokens, new, found.cached_tokens)

    def _choice(self, number: int, sample: int, text: str) -> dict[str, Any]:
        """What is new of a reply: its text, and the log-probabilities that were not sent."""
        prompt, sent = self.generation.prompts[number], self._sent[number, sample]
        reply = prompt.replies[sample]
        text = "" if self._prompts_only else text
        found: list[TokenLogProb | int] = []
        if self._echo and not sent.begun:
            tokens = prompt.request.prompt[self.generation.parsed.prefixes[number] :]
            text = self._tokenizer.decode(tokens, special=True) + text
            if self._wants_log_probs:
                found += self._prompt_log_probs(number, reply)
        if not self._prompts_only:
            found += reply.log_probs[sent.tokens :]  # with the stop token: clients expect it last
        sent.begun, sent.tokens = True, len(reply.log_probs)
        return {
            "index": number * len(prompt.replies) + sample,
            "text": text,
            "logprobs": self._log_probs(found, sent.offsets) if self._wants_log_probs else None,
            "finish_reason": finish_reason(reply),
        }

    def _prompt_log_probs(self, number: int, reply: Reply) -> list[TokenLogProb | int]:
        """Log-probabilities of the client's prompt; the first token has none at a text's start."""
        if prefix := self.generation.parsed.prefixes[number]:
            return list(reply.prompt_log_probs[prefix - 1 :])
        return [self.generation.prompts[number].request.prompt[0], *reply.prompt_log_probs]

    def _log_probs(
        self, found: Sequence[TokenLogProb | int], offsets: _Offsets
    ) -> dict[str, list[Any]]:
        """A choice's ``logprobs``; a bare token is one without: the first of a prompt."""
        result: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for each in found:
            token = each if isinstance(each, int) else each.token
            log_prob, top = None, None
            if not isinstance(each, int):
                log_prob = max(each.log_prob, -9999.0)
                top = {token_text(self._tokenizer, t): max(value, -9999.0) for t, value in each.top}
            result["tokens"].append(token_text(self._tokenizer, token))
            result["token_logprobs"].append(log_prob)
            result["top_logprobs"].append(top)
            result["text_offset"].append(offsets.next(token))
        return result
