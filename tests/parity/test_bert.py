"""BERT's classes of transformers: the same logits in both directions, with padding and segments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lmsmith.core.errors import UserError
from lmsmith.models.attention import padding_mask
from lmsmith.models.encoder import Encoder
from lmsmith.models.interop.bert import from_bert, read_bert_folder, write_bert_folder
from lmsmith.models.masked_lm import MaskedLM, MaskedLMConfig
from lmsmith.tokenizers.hugging_face import load_hugging_face, to_hugging_face
from tiny_encoders import tiny_masked_lm, tiny_tokenizer

transformers = pytest.importorskip("transformers")
TOLERANCE = 1e-4
CONFIG = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "vocab_size": 61,
    "max_position_embeddings": 32,
}


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, lengths and segments of two pairs, the second padded."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(5, 61, (2, 14), generator=generator)
    segments = torch.zeros(2, 14, dtype=torch.long)
    segments[0, 6:], segments[1, 3:] = 1, 1
    return tokens, torch.tensor([14, 9]), segments


def theirs(kind: str, **settings: Any) -> Any:
    torch.manual_seed(5)
    model = getattr(transformers, kind)(transformers.BertConfig(**CONFIG, **settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(float("LayerNorm.weight" in name), 0.3)
    return model


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def their_inputs() -> dict[str, Tensor]:
    tokens, lengths, segments = batch()
    mask = padding_mask(lengths, 14)[:, 0].long()
    return {"input_ids": tokens, "attention_mask": mask, "token_type_ids": segments}


@torch.no_grad()
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_bert_model(tmp_path: Path, activation: str) -> None:
    model = theirs("BertModel", hidden_act=activation)
    ours = read_bert_folder(saved(model, tmp_path))
    assert isinstance(ours, Encoder)
    tokens, lengths, segments = batch()
    hidden = ours(tokens, mask_bts=padding_mask(lengths, 14), segments_bt=segments)
    expected = model(**their_inputs())
    torch.testing.assert_close(hidden, expected.last_hidden_state, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(ours.pooled(hidden), expected.pooler_output, rtol=0, atol=TOLERANCE)
    assert sum(each.numel() for each in ours.parameters()) == ours.config.parameters


@torch.no_grad()
@pytest.mark.parametrize("kind", ["BertForMaskedLM", "BertForPreTraining"])
def test_masked_language_models(tmp_path: Path, kind: str) -> None:
    model = theirs(kind)
    ours = read_bert_folder(saved(model, tmp_path))
    assert isinstance(ours, MaskedLM)
    tokens, lengths, segments = batch()
    hidden = ours.encoder(tokens, mask_bts=padding_mask(lengths, 14), segments_bt=segments)
    expected = model(**their_inputs())
    logits = expected.logits if kind == "BertForMaskedLM" else expected.prediction_logits
    torch.testing.assert_close(ours.logits(hidden), logits, rtol=0, atol=TOLERANCE)
    assert ours.config.next_sentence == (kind == "BertForPreTraining")
    if ours.config.next_sentence:
        follows = expected.seq_relationship_logits
        torch.testing.assert_close(ours.follows(hidden), follows, rtol=0, atol=TOLERANCE)
    assert sum(each.numel() for each in ours.parameters()) == ours.config.parameters
    assert sum(each.numel() for each in model.parameters()) == ours.config.parameters


@torch.no_grad()
def test_the_encoder_of_a_classifier(tmp_path: Path) -> None:
    model = theirs("BertForSequenceClassification", num_labels=3)
    ours = read_bert_folder(saved(model, tmp_path))
    assert isinstance(ours, Encoder)
    tokens, lengths, segments = batch()
    hidden = ours(tokens, mask_bts=padding_mask(lengths, 14), segments_bt=segments)
    logits = model.classifier(ours.pooled(hidden))
    expected = model(**their_inputs()).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("next_sentence", [False, True])
def test_our_masked_models_in_transformers(tmp_path: Path, next_sentence: bool) -> None:
    ours = tiny_masked_lm(61, next_sentence=next_sentence)
    write_bert_folder(tmp_path, ours)
    kind = "BertForPreTraining" if next_sentence else "BertForMaskedLM"
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [kind]
    model, about = getattr(transformers, kind).from_pretrained(tmp_path, output_loading_info=True)
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    found = model.eval()(**their_inputs())
    tokens, lengths, segments = batch()
    hidden = ours.encoder(tokens, mask_bts=padding_mask(lengths, 14), segments_bt=segments)
    logits = found.prediction_logits if next_sentence else found.logits
    torch.testing.assert_close(ours.logits(hidden), logits, rtol=0, atol=TOLERANCE)
    again = read_bert_folder(tmp_path)
    for name, each in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], each), name


@torch.no_grad()
def test_our_encoders_in_transformers(tmp_path: Path) -> None:
    ours = tiny_masked_lm(61).encoder
    write_bert_folder(tmp_path, ours)
    model, about = transformers.BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not about["missing_keys"]
    assert not about["unexpected_keys"]
    tokens, lengths, segments = batch()
    hidden = ours(tokens, mask_bts=padding_mask(lengths, 14), segments_bt=segments)
    found = model.eval()(**their_inputs())
    torch.testing.assert_close(hidden, found.last_hidden_state, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(ours.pooled(hidden), found.pooler_output, rtol=0, atol=TOLERANCE)


def test_old_names_of_norms_are_read() -> None:
    model = theirs("BertModel")
    state = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("Norm.bias", "Norm.beta"): each
        for name, each in model.state_dict().items()
    }
    settings = {**model.config.to_dict(), "model_type": "bert"}
    assert isinstance(from_bert(settings, state), Encoder)


def test_what_is_missing_or_unsupported_is_named(tmp_path: Path) -> None:
    model = theirs("BertForMaskedLM")
    saved(model, tmp_path)
    state = {
        name: each.clone().contiguous()
        for name, each in model.state_dict().items()
        if "predictions.decoder" not in name
    }
    settings = json.loads((tmp_path / "config.json").read_text())
    lacking = {name: each for name, each in state.items() if "transform.dense.bias" not in name}
    with pytest.raises(UserError, match=r"lack cls\.predictions\.transform\.dense\.bias"):
        from_bert(settings, lacking)
    untied = state | {"cls.predictions.decoder.weight": torch.zeros(61, 24)}
    with pytest.raises(UserError, match="is not tied to"):
        from_bert(settings, untied)
    with pytest.raises(UserError, match="shape"):
        from_bert(settings, state | {"cls.predictions.bias": torch.zeros(60)})
    relative = settings | {"position_embedding_type": "relative_key"}
    (tmp_path / "config.json").write_text(json.dumps(relative))
    with pytest.raises(UserError, match="position_embedding_type"):
        read_bert_folder(tmp_path)


def test_sizes_of_masked_models_are_transformers() -> None:
    from lmsmith.models.folder import without_weights
    from lmsmith.models.presets import PRESETS

    config = MaskedLMConfig(PRESETS["bert-base"].config, next_sentence=True)
    with without_weights():
        model = transformers.BertForPreTraining(transformers.BertConfig())
    assert config.parameters == sum(each.numel() for each in model.parameters()) == 110_106_428


def test_the_tokenizer_is_transformers(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    to_hugging_face(tokenizer, tmp_path)
    (tmp_path / "config.json").write_text("{}")
    their = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ours = load_hugging_face(tmp_path)
    for text in ("The dog, the CAT; a house?", "sisters by the sea ü", "xyz [MASK] [SEP]"):
        plain = text.replace("[MASK]", "").replace("[SEP]", "")
        assert their(plain)["input_ids"][1:-1] == ours.encode(plain) == tokenizer.encode(plain)
    pair = their("the dog", "the cat sat", return_token_type_ids=True)
    frame_tokens, segments = _frame(ours, "the dog", "the cat sat")
    assert pair["input_ids"] == frame_tokens
    assert pair["token_type_ids"] == segments


def _frame(tokenizer: Any, first: str, second: str) -> tuple[list[int], list[int]]:
    from lmsmith.tokenizers.word_piece import Frame

    encoded = tokenizer.encode(first), tokenizer.encode(second)
    return Frame.of(tokenizer).sequence(*encoded, 64)
