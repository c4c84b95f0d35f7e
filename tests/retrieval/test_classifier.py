"""The classifier of garments: its arithmetic by hand, and garments that only one of its two sources can tell."""

import numpy as np
import pytest

from postproc.hypotheses import Hypotheses
from retrieval.classifier import FLOOR, Classifier, Examples, fit, joined, load, with_weights

NAMES = ("vest", "skirt", "dress")


def by_hand(weights: tuple[float, float] = (1.0, 1.0)) -> Classifier:
    """Reads one number: the larger, the more probably a skirt."""
    layer = np.array([[0.0], [np.log(3)], [0.0]], np.float32)
    return Classifier(NAMES, {"m": "abc"}, {"m": layer}, np.zeros(3, np.float32), np.array(weights, np.float32))


def boxes(*scores: tuple[float, ...]) -> Hypotheses:
    """Hypotheses with these scores for the categories 1, 2 …"""
    score = np.array(scores, np.float32)
    return Hypotheses(np.where(score > 0, np.arange(score.shape[1]) + 1, 0), score)


def test_probabilities_by_hand() -> None:
    found = by_hand().probabilities(boxes((0.5, 0.25, 0.25)), {"m": np.array([[1.0]])})
    # the layer says 1 : 3 : 1, the boxes 2 : 1 : 1
    np.testing.assert_allclose(found, [[2 / 6, 3 / 6, 1 / 6]], atol=1e-6)


def test_a_category_that_no_box_names_is_possible() -> None:
    found = by_hand((1.0, 0.0)).probabilities(boxes((0.5, 0.0, 0.0)), {"m": np.array([[0.0]])})
    np.testing.assert_allclose(found, [[0.5, FLOOR, FLOOR]] / np.array(0.5 + 2 * FLOOR), atol=1e-6)


def test_hypotheses_are_the_likeliest_first_with_the_items_score() -> None:
    found = by_hand().hypotheses(boxes((0.5, 0.25, 0.25)), {"m": np.array([[1.0]])}, np.array([0.5]), most=2)
    assert found.category_id.tolist() == [[2, 1]]
    np.testing.assert_allclose(found.score, [[0.5 * 3 / 6, 0.5 * 2 / 6]], atol=1e-6)


def test_other_category_ids() -> None:
    moved = by_hand().for_categories(("skirt", "dress", "vest"))
    found = moved.probabilities(boxes((0.25, 0.25, 0.5)), {"m": np.array([[1.0]])})
    np.testing.assert_allclose(found, [[3 / 6, 1 / 6, 2 / 6]], atol=1e-6)
    with pytest.raises(ValueError, match="3 categories, and not just skirt, cape"):
        moved.for_categories(("skirt", "cape"))


def test_saved_and_loaded() -> None:
    again = load(by_hand().save())
    assert (again.categories, again.embedders) == (NAMES, {"m": "abc"})
    np.testing.assert_array_equal(again.layers["m"], by_hand().layers["m"])


@pytest.mark.parametrize("data", [b"", b"no safetensors", by_hand().save()[:-8], Classifier(
    NAMES[:2], {"m": ""}, {"m": np.zeros((3, 1), np.float32)}, np.zeros(2), np.ones(2)).save(),
    Classifier(NAMES, {"m": ""}, {"m": np.full((3, 1), np.nan)}, np.zeros(3), np.ones(2)).save(),
])  # fmt: skip
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="classifier"):
        load(data)


def examples(n: int, seed: int, confused: float = 0.5) -> Examples:
    """Vests and skirts that boxes confuse in every second case and the embedding tells; dresses the other way round."""
    rng = np.random.default_rng(seed)
    label = rng.integers(1, 4, n)
    seen = np.where(label == 3, rng.integers(1, 3, n), label)  # by the embedder, for which a dress is either
    swapped = np.where(label == 3, 3, np.where(rng.random(n) < confused, 3 - label, label))
    score = np.where(np.arange(1, 4) == swapped[:, None], 0.8, 0.1).astype(np.float32)
    embedding = np.stack([np.where(seen == 1, 1.0, 0.0), np.where(seen == 2, 1.0, 0.0)], axis=1)
    hypotheses = Hypotheses(np.tile(np.arange(1, 4), (n, 1)), score)
    return Examples(label, hypotheses, {"m": embedding + rng.normal(scale=0.05, size=(n, 2))})


def test_joined_examples_are_those_of_all_parts() -> None:
    parts = examples(5, 0), examples(7, 1)
    narrow = Examples(parts[1].label, Hypotheses.own(parts[1].label, np.ones(7)), parts[1].embeddings)
    both = joined([parts[0], narrow])
    assert both.label.tolist() == [*parts[0].label, *narrow.label]
    assert both.hypotheses.category_id[5:].tolist() == [[label, 0, 0] for label in narrow.label]
    np.testing.assert_array_equal(both.embeddings["m"][5:], narrow.embeddings["m"])


def test_fitted_to_what_each_source_can_tell() -> None:
    classifier, new = fit(examples(600, 0), examples(200, 1), NAMES, {"m": "abc"}), examples(300, 2)
    found = classifier.probabilities(new.hypotheses, new.embeddings)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    right = found.argmax(axis=1) + 1 == new.label
    assert right.mean() > 0.95
    assert (new.hypotheses.score.argmax(axis=1) + 1 == new.label).mean() < 0.8


def test_a_layer_that_is_wrong_on_held_out_photos_weighs_nothing() -> None:
    classifier, new = fit(examples(600, 0), examples(200, 1), NAMES, {"m": "abc"}), examples(300, 3, confused=0.2)
    foreign = {"m": np.random.default_rng(4).permutation(new.embeddings["m"])}
    found = with_weights(classifier, Examples(new.label, new.hypotheses, foreign)).weights
    assert abs(found[1]) < 0.05 < found[0]
