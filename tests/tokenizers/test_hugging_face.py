"""Hugging Face folders: read with the ids of transformers, and written so that it reads them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from lmsmith.core.errors import UserError
from lmsmith.prompts import encode_prompt
from lmsmith.prompts.sft_rows import conversation_windows
from lmsmith.tokenizers import StreamDecoder, Tokenizer
from lmsmith.tokenizers.hugging_face import load_hugging_face, to_hugging_face

OWN = Tokenizer.train(["hello there, how are you? 你好 </s> <s>"] * 4, 300)


def unigram_folder(folder: Path) -> Path:
    """A SentencePiece-like folder, in whose vocabulary the control tokens score best."""
    pieces = ["▁", "▁hello", "▁there", "a", "b", "<", ">", "/", "s", "h", "e", "l", "o", "t", "r"]
    vocabulary = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    backend = tokenizers.Tokenizer(
        models.Unigram([*vocabulary, *((p, -1.0 - n) for n, p in enumerate(pieces))], unk_id=0)
    )
    backend.normalizer = normalizers.Replace("``", '"')
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    backend.enable_truncation(3)
    backend.save(str(folder / "tokenizer.json"))
    names = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    return folder


def test_what_it_says_beside_the_tokenizer_is_read(tmp_path: Path) -> None:
    tokenizer = load_hugging_face(unigram_folder(tmp_path))
    assert (tokenizer.start_of_text, tokenizer.end_of_text, tokenizer.end_of_turn) == (1, 2, 2)
    assert tokenizer.format.variables["bos_token"] == "<s>"
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    again = load_hugging_face(tmp_path)
    assert again.stop_tokens == (2, 1)
    talk = [{"role": "user", "content": "hello"}]
    assert again.decode(again.encode_chat(talk, ask=True).tokens, special=True) == "<s> hello"


def test_nothing_is_added_to_a_text_and_nothing_cut_off(tmp_path: Path) -> None:
    tokenizer = load_hugging_face(unigram_folder(tmp_path))
    ids = tokenizer.encode("hello there hello there")
    assert tokenizer.decode(ids) == "hello there hello there"
    assert len(ids) == 4
    stream = StreamDecoder(tokenizer)
    assert "".join([*map(stream.push, ids), stream.flush()]) == tokenizer.decode(ids)


spelt = st.lists(
    st.sampled_from(["<s>", "</s>", "<unk>", "<", "/", "s>", "hello", " ", "</s", "☃"]), max_size=8
).map("".join)


@given(spelt)
def test_text_never_makes_a_control_token(text: str) -> None:
    ids = UNIGRAM.encode(text)
    assert not {1, 2} & {*ids}
    if "☃" not in text and "unk" not in text and "n" not in text:
        assert 0 not in ids


@pytest.fixture(autouse=True, scope="module")
def _unigram(tmp_path_factory: pytest.TempPathFactory) -> None:
    global UNIGRAM
    UNIGRAM = load_hugging_face(unigram_folder(tmp_path_factory.mktemp("unigram")))


UNIGRAM: Tokenizer


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        load_hugging_face(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {"a": 0}}}')
    with pytest.raises(UserError, match="no eos_token"):
        load_hugging_face(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(UserError, match="has no token </s>"):
        load_hugging_face(tmp_path)


def test_transformers_reads_what_is_written_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transformers = pytest.importorskip("transformers")
    to_hugging_face(OWN, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        oracle = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert not caplog.records
    assert len(oracle) == OWN.vocabulary_size
    assert oracle.eos_token_id == OWN.end_of_turn
    talk = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": " hello\n"},
        {"role": "assistant", "content": "你好 there"},
    ]
    ((tokens, _),) = conversation_windows(OWN, talk, 999, 0)
    assert oracle.apply_chat_template(talk, return_dict=False) == tokens
    asked = oracle.apply_chat_template(talk[:2], add_generation_prompt=True, return_dict=False)
    assert asked == encode_prompt(OWN, talk[:2]).tokens
    text = "how are you? 你好 1234\n\n"
    assert oracle.encode(text) == [OWN.start_of_text, *OWN.encode(text)]
    assert oracle.decode(oracle.encode(text), skip_special_tokens=True) == text


def test_what_is_written_comes_back_by_its_template(tmp_path: Path) -> None:
    to_hugging_face(OWN, tmp_path)
    back = load_hugging_face(tmp_path)
    assert not back.is_own
    assert back.end_of_turn == OWN.end_of_turn
    talk = [{"role": "user", "content": "<|end|> hello"}, {"role": "assistant", "content": "你好"}]
    assert conversation_windows(back, talk, 999, 0) == conversation_windows(OWN, talk, 999, 0)
    assert encode_prompt(back, talk[:1]) == encode_prompt(OWN, talk[:1])
