"""Classifiers: what they see, what they add up, and an independent computation of their logits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from lmsmith.models.classifier import Classifier, ClassifierConfig
from lmsmith.models.config import ModelConfig
from lmsmith.models.encoder import Encoder
from tiny_models import random_decoder

SHAPE = ModelConfig(2, 16, 2, 24, 50)
CONFIG = ClassifierConfig(SHAPE, labels=("no", "yes", "maybe"))
S, D, E = 50, 51, 52


def classifier(config: ClassifierConfig = CONFIG) -> Classifier:
    model = Classifier(config, random_decoder(config.model)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in (model.controls, model.head):
            layer.weight.normal_(0.0, 0.5, generator=generator)
    return model


def padded(*sequences: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    longest = max(map(len, sequences))
    rows = [[*each, *[7] * (longest - len(each))] for each in sequences]
    return torch.tensor(rows), torch.tensor([len(each) for each in sequences])


def test_logits_equal_a_body_whose_vocabulary_has_the_control_tokens() -> None:
    model = classifier()
    longer = random_decoder(replace(SHAPE, vocabulary_size=53))
    state = dict(model.decoder.state_dict())
    whole = torch.cat([model.decoder.token_embedding.weight, model.controls.weight])
    longer.load_state_dict({**state, "token_embedding.weight": whole})
    tokens, lengths = padded([S, 3, 4, 5, E], [S, 9, E])
    expected = [longer(tokens[row : row + 1, :n])[0, -1] for row, n in enumerate(lengths)]
    found = model(tokens, lengths, [1, 1])
    assert torch.allclose(found, F.linear(torch.stack(expected), model.head.weight), atol=1e-5)


def test_the_extract_token_sees_every_token_before_it_and_no_padding() -> None:
    model = classifier()
    tokens, lengths = padded([S, 3, 4, D, 5, E], [S, 9, E])
    before = model(tokens, lengths, [1, 1])
    for place in range(6):
        changed = tokens.clone()
        changed[0, place] = 20
        after = model(changed, lengths, [1, 1])
        assert not torch.allclose(after[0], before[0], atol=1e-4), place
        assert torch.equal(after[1], before[1])
    changed = tokens.clone()
    changed[1, 3:] = 33
    assert torch.allclose(model(changed, lengths, [1, 1]), before, atol=1e-6)


def test_both_orders_are_added() -> None:
    model = classifier(replace(CONFIG, form="similarity"))
    one, other = [S, 3, 4, D, 5, E], [S, 5, D, 3, 4, E]
    found = model(*padded(one, other), [2])
    assert torch.allclose(found, model(*padded(other, one), [2]), atol=1e-5)
    _, states = model.states(*padded(one, other))
    assert torch.allclose(found[0], (states[0] + states[1]) @ model.head.weight.T, atol=1e-5)


def test_a_choice_has_a_number_an_answer_and_less_answers_are_padded_with_minus_infinity() -> None:
    model = classifier(ClassifierConfig(SHAPE, form="multiple_choice"))
    assert model.head.weight.shape == (1, 16)
    three = [[S, 3, D, 4, E], [S, 3, D, 5, 6, E], [S, 3, D, 7, E]]
    found = model(*padded(*three, *three[:2]), [3, 2])
    assert found.shape == (2, 3)
    assert found[1, 2] == -torch.inf
    assert torch.allclose(found[0, :2], found[1, :2], atol=1e-5)
    assert torch.softmax(found, dim=1)[1, 2] == 0


@pytest.mark.parametrize(
    ("form", "labels", "outputs"),
    [("classification", ("a", "b"), 2), ("similarity", (), 1), ("multiple_choice", ("A", "B"), 1)],
)
def test_the_width_of_the_output(form: str, labels: tuple[str, ...], outputs: int) -> None:
    config = ClassifierConfig(SHAPE, form=form, labels=labels)  # type: ignore[arg-type]
    assert config.outputs == outputs
    assert config.predicts_numbers == (form == "similarity")


def test_dropout_is_of_training_alone() -> None:
    model = classifier(replace(CONFIG, dropout=0.5))
    tokens, lengths = padded([S, 3, 4, E])
    assert torch.equal(model(tokens, lengths, [1]), model(tokens, lengths, [1]))
    torch.manual_seed(0)
    model.train()
    assert not torch.equal(model(tokens, lengths, [1]), model(tokens, lengths, [1]))


def test_an_encoder_sees_both_segments_and_no_padding() -> None:
    shape = replace(
        SHAPE, causal=False, norm_position="post", segments=2, embedding_norm=True, pooler=True
    )
    body = Encoder(shape)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.normal_(0.2, 0.4, generator=generator)
    model = Classifier(replace(CONFIG, model=shape, form="entailment"), body).eval()
    model.initialise_head(generator, like=(2, 3, 3))
    assert torch.equal(model.controls.weight[2], body.token_embedding.weight[3])
    tokens, lengths = padded([S, 3, 4, D, 5, 6, E], [S, 9, D, 8, E])
    found = model(tokens, lengths, [1, 1])
    plain = torch.tensor([[2, 3, 4, 3, 5, 6, 3]])
    hidden = body(plain, segments_bt=torch.tensor([[0, 0, 0, 0, 1, 1, 1]]))
    assert torch.allclose(found[0], model.head(body.pooled(hidden))[0], atol=1e-5)
    changed = tokens.clone()
    changed[1, 5:] = 33
    assert torch.allclose(model(changed, lengths, [1, 1]), found, atol=1e-6)
    changed = tokens.clone()
    changed[0, 5] = 33
    assert not torch.allclose(model(changed, lengths, [1, 1])[0], found[0], atol=1e-4)
