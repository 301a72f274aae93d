"""LangChain's ChatOpenAI and the llm command, unchanged, against the real server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from worlds import CONTEXT, SENTENCE, TOKENIZER, Running, words

QUESTION = "what do you like?"


@pytest.fixture
def chat(served: Running) -> Any:
    reason = "langchain-openai is not installed (extra [clients])"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, on import
        langchain = pytest.importorskip("langchain_openai", reason=reason)

    def make(model: str = "parrot", **options: Any) -> Any:
        made = {"temperature": 0, "max_retries": 0, **options}
        return langchain.ChatOpenAI(
            model=model, base_url=f"{served.address}/v1", api_key="none", **made
        )

    return make


def test_langchain_invokes(chat: Any) -> None:
    found = chat().invoke([("system", "be kind"), ("human", QUESTION)])
    assert found.content == SENTENCE
    assert found.response_metadata["finish_reason"] == "stop"
    assert found.response_metadata["model_name"] == "parrot"
    assert found.usage_metadata["output_tokens"] == len(TOKENIZER.encode(SENTENCE)) + 1
    total = found.usage_metadata["input_tokens"] + found.usage_metadata["output_tokens"]
    assert found.usage_metadata["total_tokens"] == total
    parts = [{"type": "text", "text": "what do "}, {"type": "text", "text": "you like?"}]
    whole, apart = (chat().invoke([("human", said)]) for said in (QUESTION, parts))
    assert whole.usage_metadata["input_tokens"] == apart.usage_metadata["input_tokens"]
    short = chat(max_tokens=4).invoke(QUESTION)
    assert (short.content, short.response_metadata["finish_reason"]) == ("é", "length")
    assert chat(stop=["d te"]).invoke(QUESTION).content == "é你🙂 an"


def test_langchain_streams_and_batches(chat: Any) -> None:
    chunks = list(chat(stream_usage=True).stream(QUESTION))
    assert "".join(chunk.content for chunk in chunks) == SENTENCE
    assert [chunk.content for chunk in chunks if chunk.content][:3] == ["é", "你", "🙂"]
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.usage_metadata["output_tokens"] == len(TOKENIZER.encode(SENTENCE)) + 1
    assert whole.response_metadata["finish_reason"] == "stop"
    replies = chat().batch([QUESTION] * 3)
    assert [reply.content for reply in replies] == [SENTENCE] * 3

    async def ask() -> Any:
        async with httpx.AsyncClient(trust_env=False) as own:  # theirs is never closed
            return await chat(http_async_client=own).ainvoke(QUESTION)

    assert asyncio.run(ask()).content == SENTENCE
    first, again, other = (
        chat("random", temperature=1, seed=seed, max_tokens=20).invoke(QUESTION).content
        for seed in (1, 1, 2)
    )
    assert first == again != other
    likely = chat(logprobs=True, top_logprobs=2).invoke(QUESTION)
    assert len(likely.response_metadata["logprobs"]["content"][0]["top_logprobs"]) == 2


def test_langchain_is_refused_clearly(chat: Any) -> None:
    import openai

    def add(a: int, b: int) -> int:
        """The sum."""
        return a + b

    with pytest.raises(openai.BadRequestError, match="tools are not supported"):
        chat().bind_tools([add]).invoke(QUESTION)
    with pytest.raises(openai.BadRequestError, match="response_format"):
        chat().bind(response_format={"type": "json_object"}).invoke(QUESTION)
    image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/secret.png"}}
    with pytest.raises(openai.BadRequestError, match="only parts of type text"):
        chat().invoke([("human", [image])])
    with pytest.raises(openai.BadRequestError, match="maximum context length"):
        chat().invoke(words(CONTEXT))
    with pytest.raises(openai.NotFoundError, match="there is: parrot, random"):
        chat("gpt-7").invoke(QUESTION)


@pytest.fixture
def llm(served: Running, tmp_path: Path) -> Any:
    """Runs the command with a home of its own, whose configuration names this server."""
    pytest.importorskip("llm", reason="llm is not installed (extra [clients])")
    models = [
        {"model_id": f"my-{name}", "model_name": name, "api_base": f"{served.address}/v1"}
        for name in ("parrot", "random", "gpt-7")
    ]
    # Every JSON is YAML.
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps(models))

    def run(*words: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "llm", *words],
            env={**os.environ, "LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    return run


def test_the_llm_command(llm: Any) -> None:
    assert llm("-m", "my-parrot", QUESTION, "-o", "temperature", "0") == f"{SENTENCE}\n"
    # The next turn of the same conversation, whole this time.
    assert llm("-c", "--no-stream", "and rain?", "-o", "temperature", "0") == f"{SENTENCE}\n"
    logged = json.loads(llm("logs", "--json"))
    assert [each["model"] for each in logged] == ["my-parrot"] * 2
    assert logged[0]["conversation_id"] == logged[1]["conversation_id"]
    assert "there is: parrot, random" in llm("-m", "my-gpt-7", QUESTION, status=1)
