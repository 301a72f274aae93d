"""The baseline that knows words alone."""

from __future__ import annotations

from lmsmith.statistics.bag_of_words import features, predict_labels, predict_numbers


def test_it_tells_words_apart() -> None:
    train = [("a good film",), ("a bad film",), ("good",), ("bad",)] * 3
    found = predict_labels(train, [1, 0, 1, 0] * 3, [("good good",), ("how bad",)])
    assert found.tolist() == [1, 0]


def test_pairs_have_the_words_in_common() -> None:
    same, other = features(["a dog runs", "the dog runs"]), features(["a dog", "one cat"])
    assert "=:dog" in same
    assert same.count("=shared") > other.count("=shared")
    train = [("a dog runs", "a dog runs"), ("a dog", "one cat"), ("sun", "sun"), ("sky", "sea")] * 4
    alike, unlike = predict_numbers(train, [5.0, 0.0, 5.0, 0.0] * 4, [("cow", "cow"), ("x", "y")])
    assert alike > unlike
