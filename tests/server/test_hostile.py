"""Whatever comes, the server answers in the API's shape, without a 500, and goes on."""

from __future__ import annotations

import json
import os
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds import HTTP, SENTENCE, Running

_numbers = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([0, 1, 2, -1, 0.5, 5, 1e308])
)
_texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["", "user", "assistant", "<|end|>", "\ud800", "\x00", "é你🙂", "tea", "text"]),
)
_values = st.recursive(
    st.one_of(st.none(), st.booleans(), _numbers, _texts),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(_texts, inner, max_size=3)
    ),
    max_leaves=6,
)
_messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "developer"]), "content": _texts}
    ),
    min_size=1,
    max_size=4,
)
_fields = st.dictionaries(
    st.sampled_from([
        "n", "temperature", "top_p", "top_k", "min_p", "stop", "seed", "presence_penalty",
        "frequency_penalty", "repetition_penalty", "logit_bias", "logprobs", "top_logprobs",
        "stream_options", "echo", "best_of", "suffix", "user", "max_completion_tokens", "tools",
        "response_format", "messages", "prompt", "model", "tokens", "input", "inputs",
    ]),
    st.one_of(_values, _numbers),
    max_size=3,
)  # fmt: skip
_bodies = st.builds(
    lambda messages, prompt, stream, fields: {
        "messages": messages, "prompt": prompt, "tokens": [1], "max_tokens": 3, "stream": stream,
        **fields,
    },
    _messages, _texts, st.booleans(), _fields,
)  # fmt: skip
_paths = st.sampled_from(
    ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize", "/v1/tasks/none"]
)


@settings(
    max_examples=int(os.environ.get("LMSMITH_HOSTILE", "40")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(_paths, _bodies)
def test_hostile_bodies(served: Running, path: str, body: dict[str, Any]) -> None:
    if body.get("max_completion_tokens") is not None:
        body["max_tokens"] = 3
    content = json.dumps(body).encode("utf-8", errors="surrogatepass")
    response = HTTP.post(
        f"{served.address}{path}", content=content, headers={"content-type": "application/json"}
    )
    assert response.status_code in (200, 400, 404), (response.status_code, response.text)
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert '"internal_error"' not in response.text
    assert not served.engine.generations or body.get("stream")


def test_and_it_still_answers(served: Running) -> None:
    body = {"messages": [{"role": "user", "content": "tea?"}], "temperature": 0}
    found = HTTP.post(f"{served.address}/v1/chat/completions", json=body)
    assert found.json()["choices"][0]["message"]["content"] == SENTENCE
