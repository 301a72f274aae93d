"""Our server, and labelling samples, in front of the real vLLM: chat, streams, completions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from served_kinds import TOKENIZER, Kind
from worlds import HTTP, Running, running

from lmsmith.catalogue.remote import find_remote
from lmsmith.core.recipe import MachineConfig
from lmsmith.feedback.sample import writer_of
from lmsmith.generation.engine import SamplingSettings, generate
from lmsmith.prompts import encode_prompt
from lmsmith.training.machine import resolve_machine

pytestmark = pytest.mark.vllm

MESSAGES = [{"role": "user", "content": "What is the colour of the sky?"}]


@pytest.fixture(scope="module")
def fronts(kinds: dict[str, Kind]) -> Iterator[dict[str, Running]]:
    """A server of ours in front of each of vLLM's."""
    with ExitStack() as closing:
        found = {}
        for name, kind in kinds.items():
            kind.model.bring(kind.decoder)
            remote = find_remote(f"openai:{kind.url}/v1#{kind.model.server.model}")
            found[name] = closing.enter_context(running({}, remote={"big": remote}))
        yield found


def test_chat_and_streams_write_what_our_own_engine_writes(
    kind: Kind, fronts: dict[str, Running]
) -> None:
    kind.model.bring(kind.decoder)
    settings = SamplingSettings(16, temperature=0, stop_tokens=TOKENIZER.stop_tokens)
    prompt = encode_prompt(TOKENIZER, MESSAGES).tokens
    (ours,) = generate(kind.decoder, [prompt], settings)
    text = TOKENIZER.decode(ours[:-1] if ours[-1] in TOKENIZER.stop_tokens else ours)
    body = {"messages": MESSAGES, "temperature": 0, "max_tokens": 16}
    address = f"{fronts[kind.name].address}/v1/chat/completions"
    whole = HTTP.post(address, json=body).json()
    assert whole["choices"][0]["message"]["content"].rstrip("�") == text.rstrip("�")
    assert whole["usage"]["prompt_tokens"] == len(prompt)
    lines = HTTP.post(address, json=body | {"stream": True}).text.split("\n\n")
    events = [json.loads(each[6:]) for each in lines if each and "[DONE]" not in each]
    pieces = [each["choices"][0]["delta"].get("content") or "" for each in events]
    assert "".join(pieces) == whole["choices"][0]["message"]["content"]
    assert sum(map(bool, pieces)) > 1


def test_answers_for_the_labelling_queue_are_drawn(kind: Kind) -> None:
    remote = find_remote(f"openai:{kind.url}/v1#{kind.model.server.model}")
    settings = SamplingSettings(12, temperature=1.0)
    write = writer_of(remote, resolve_machine(MachineConfig(precision="fp32")), settings)
    answers = write(MESSAGES, 4, 7)
    assert len(set(answers)) == 4
    assert write(MESSAGES, 4, 7) == answers
