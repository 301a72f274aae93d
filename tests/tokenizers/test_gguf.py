"""GGUF's tokenizers: SmolLM2's ids are those of transformers, SentencePiece's its own."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from lmsmith.catalogue.reading import load_any_tokenizer
from lmsmith.core.errors import UserError
from lmsmith.tokenizers import Tokenizer
from lmsmith.tokenizers.gguf import (
    PRE_TOKENIZERS,
    gguf_metadata,
    merges_of_scores,
    pre_tokenizer_name,
    tokenizer_from_gguf,
)

from .oracle_texts import oracle_texts

OWN = Tokenizer.train(["hello there, how are you? It's 1234\n\n你好"] * 4, 320)


@pytest.fixture(scope="module")
def smollm(smollm_gguf: Path) -> Tokenizer:
    return load_any_tokenizer(smollm_gguf)


def test_smollm2_has_the_ids_of_transformers(
    smollm: Tokenizer, smollm_gguf: Path, public_data: Callable[[str], Path]
) -> None:
    transformers = pytest.importorskip("transformers")
    oracle = transformers.AutoTokenizer.from_pretrained(
        smollm_gguf.parent, gguf_file=smollm_gguf.name
    )
    for name, text in oracle_texts(public_data).items():
        assert smollm.encode(text) == oracle.encode(text, add_special_tokens=False), name
    talks = [
        [{"role": "user", "content": " hi "}],
        [{"role": "system", "content": "be"}, {"role": "user", "content": "x 12\n"}],
        [
            {"role": "user", "content": "你好"},
            {"role": "assistant", "content": "Well, 42."},
            {"role": "user", "content": "and?"},
        ],
    ]
    for talk in talks:
        for ask in (False, True):
            expected = oracle.apply_chat_template(
                talk, add_generation_prompt=ask, return_dict=False
            )
            assert smollm.encode_chat(talk, ask=ask).tokens == expected


def test_smollm2_knows_its_control_tokens(smollm: Tokenizer) -> None:
    assert smollm.vocabulary_size == 49_152
    names = smollm.control_tokens
    assert names[smollm.end_of_turn] == "<|im_end|>"
    assert names[smollm.start_of_text] == "<|im_start|>"
    assert names[smollm.end_of_text] == "<|endoftext|>"
    assert smollm.text_start == ()  # its add_bos_token is false
    assert smollm.stop_tokens == (2, 0)
    ids = smollm.encode("".join(names.values()))
    assert not names.keys() & {*ids}
    assert smollm.decode(ids) == "".join(names.values())


def test_digits_are_cut_singly_for_smollm() -> None:
    metadata = gguf_metadata(OWN)
    del metadata["tokenizer.huggingface.json"]
    metadata["tokenizer.ggml.pre"] = "smollm"
    metadata["tokenizer.ggml.merges"] = [*metadata["tokenizer.ggml.merges"], "1 2"]
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "12"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 1]
    single = tokenizer_from_gguf(metadata)
    digits = [single.token_bytes(token) for token in single.encode("1212")]
    assert digits == [b"1", b"2", b"1", b"2"]
    metadata["tokenizer.ggml.pre"] = "gpt-2"
    assert len(tokenizer_from_gguf(metadata).encode("1212")) == 2


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_known_cut_gives_the_text_back(name: str) -> None:
    metadata = gguf_metadata(OWN)
    del metadata["tokenizer.huggingface.json"]
    metadata["tokenizer.ggml.pre"] = name
    tokenizer = tokenizer_from_gguf(metadata)
    text = "It's  DON'T 12345\r\n\r\n 你好 😀\t x"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert pre_tokenizer_name(tokenizer) is not None


def test_our_own_comes_back_exactly() -> None:
    back = tokenizer_from_gguf(gguf_metadata(OWN))
    text = "It's 12345\n\n你好 <|end|>"
    assert back.encode(text) == OWN.encode(text)
    assert back.end_of_turn == OWN.end_of_turn
    assert back.vocabulary_size == OWN.vocabulary_size
    assert pre_tokenizer_name(OWN) is None


def test_sentencepiece_scores_give_the_ids_of_sentencepiece(
    public_data: Callable[[str], Path],
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    text = public_data("lm/tinyshakespeare.txt").read_text()
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text[:300_000].splitlines()),
        model_writer=trained,
        vocab_size=1_000,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    oracle = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    ids = range(oracle.get_piece_size())
    kind = [
        2
        if oracle.is_unknown(token)
        else 3
        if oracle.is_control(token)
        else 6
        if oracle.is_byte(token)
        else 1
        for token in ids
    ]
    tokenizer = tokenizer_from_gguf(
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.tokens": [oracle.id_to_piece(token) for token in ids],
            "tokenizer.ggml.scores": [oracle.get_score(token) for token in ids],
            "tokenizer.ggml.token_type": kind,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.unknown_token_id": 0,
        }
    )
    assert (tokenizer.start_of_text, tokenizer.end_of_text) == (1, 2)
    texts = oracle_texts(public_data)
    lines = [line for text in texts.values() for line in text[:20_000].split("\n") if line]
    # Both read these as spaces; what the oracle makes of its own names is not compared.
    lines = [line for line in lines if "▁" not in line and "<unk>" not in line][:2_000]
    for line in lines:
        assert tokenizer.encode(line) == oracle.encode(line), line
        assert tokenizer.decode(tokenizer.encode(line)) == line
    assert not {0, 1, 2} & {*tokenizer.encode("<s></s><unk> <s>")}


def test_a_token_of_scores_is_made_in_every_way_the_best_first() -> None:
    scores = {"a": 0.0, "b": 0.0, "c": 0.0, "ab": -2.0, "bc": -1.0, "abc": -3.0}
    merges = list(merges_of_scores(scores))
    assert merges == [["b", "c"], ["a", "b"], ["a", "bc"], ["ab", "c"]]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"tokenizer.ggml.model": "t5"}, "of the kind 't5'"),
        ({"tokenizer.ggml.pre": "unheard-of"}, "cuts text by 'unheard-of'"),
        ({"tokenizer.ggml.tokens": None}, "has no tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.merges": None}, "has no tokenizer.ggml.merges"),
        ({"tokenizer.ggml.token_type": [1]}, r"\d+ tokens and not as many types"),
    ],
)
def test_what_is_missing_or_unknown_is_named(change: dict[str, object], problem: str) -> None:
    metadata = gguf_metadata(OWN) | change
    del metadata["tokenizer.huggingface.json"]
    with pytest.raises(UserError, match=problem):
        tokenizer_from_gguf(metadata)


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"no such thing" * 100)
    with pytest.raises(UserError, match="not a GGUF file"):
        load_any_tokenizer(tmp_path / "x.gguf")


def test_unused_entries_are_no_tokens() -> None:
    metadata = gguf_metadata(OWN)
    del metadata["tokenizer.huggingface.json"]
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"], "[PAD1]", "[PAD2]"]
    metadata["tokenizer.ggml.token_type"] = [*metadata["tokenizer.ggml.token_type"], 5, 5]
    padded = tokenizer_from_gguf(metadata)
    assert padded.vocabulary_size == OWN.vocabulary_size
    assert padded.encode("hello [PAD1]") == OWN.encode("hello [PAD1]")
    metadata["tokenizer.ggml.padding_token_id"] = OWN.vocabulary_size
    assert tokenizer_from_gguf(metadata).vocabulary_size == OWN.vocabulary_size + 1
