"""What a garment is: a probability for each category, from its embeddings and from the fused boxes of its place.

In: the embeddings that a search has anyway, and the items' hypotheses of the fused boxes. Out: better hypotheses, whose
scores are probabilities. A linear layer reads the embeddings, which have seen the garment alone at full resolution; its
answer and the detectors' are pooled by two weights, fitted to photos that neither has learned from. NumPy only.
Sources: `postproc.softmax_regression`, `postproc.logit_pool`.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import safetensors.numpy

from postproc import logit_pool, softmax_regression
from postproc.hypotheses import Hypotheses
from postproc.softmax_regression import log_softmax

FLOOR = 0.01  # score of a category that no fused box names
BLOCK = 4096  # rows multiplied at once, in double precision
DECAY = 1e-4  # of the layer: the best of 1e-2 to 3e-6 on what is held out of ccp_df2 train


@dataclass(frozen=True)
class Classifier:
    """Fitted by `fit`; C categories."""

    categories: tuple[str, ...]  # their names, id 1 first
    embedders: Mapping[str, str]  # embedder -> sha256 of the weights whose embeddings the layer reads
    layers: Mapping[str, np.ndarray]  # embedder -> (C, D) float32
    biases: np.ndarray  # (C,) float32
    weights: np.ndarray  # (2,) float32, of the fused scores' logarithms and of the layer's log probabilities

    def probabilities(self, hypotheses: Hypotheses, embeddings: Mapping[str, np.ndarray]) -> np.ndarray:
        """(N, C) float64, rows that add up to 1.

        Args:
            hypotheses: of N items, scores those of the fused boxes; category ids are of `categories`.
            embeddings: embedder -> (N, D) float, unit length, of those in `embedders` at least.
        """
        return np.exp(logit_pool.pool(self.logits(hypotheses, embeddings), self.weights))

    def logits(self, hypotheses: Hypotheses, embeddings: Mapping[str, np.ndarray]) -> np.ndarray:
        """(2, N, C) float64, what is pooled: by the fused boxes, and by the layer."""
        layer = sum(_products(embeddings[name], layer) for name, layer in self.layers.items()) + self.biases
        return np.stack([box_logits(hypotheses, len(self.categories)), log_softmax(layer)])

    def hypotheses(
        self, hypotheses: Hypotheses, embeddings: Mapping[str, np.ndarray], score: np.ndarray, most: int
    ) -> Hypotheses:
        """The `most` likeliest categories of N items, best first; scores are the probability times the item's score.

        `score` is (N,) float, of the items' boxes. The product is what a submission is judged by: of the boxes of one
        garment that which is both a sure garment and probably of the category stands for it.
        """
        likely = self.probabilities(hypotheses, embeddings)
        order = np.argsort(-likely, axis=1, kind="stable")[:, :most]
        scores = np.take_along_axis(likely, order, 1) * np.asarray(score, np.float64)[:, None]
        return Hypotheses((order + 1).astype(np.int64), scores.astype(np.float32))

    def for_categories(self, names: Sequence[str]) -> "Classifier":
        """The same with other category ids. ValueError where `names` are not its categories in another order."""
        if set(names) != set(self.categories):
            raise ValueError(f"it knows {len(self.categories)} categories, and not just {', '.join(names)[:80]}")
        order = [self.categories.index(name) for name in names]
        layers = {name: layer[order] for name, layer in self.layers.items()}
        return dataclasses.replace(self, categories=tuple(names), layers=layers, biases=self.biases[order])

    def save(self) -> bytes:
        """As safetensors; the header names categories and embedders."""
        arrays = {f"layers/{name}": np.ascontiguousarray(layer, np.float32) for name, layer in self.layers.items()}
        arrays |= {"biases": self.biases.astype(np.float32), "weights": self.weights.astype(np.float32)}
        about = {"categories": json.dumps(self.categories), "embedders": json.dumps(dict(self.embedders))}
        return safetensors.numpy.save(arrays, about)


def load(data: bytes) -> Classifier:
    """A classifier from the bytes of `save`; ValueError for others."""
    try:
        arrays = safetensors.numpy.load(data)
        about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        categories, embedders = tuple(json.loads(about["categories"])), dict(json.loads(about["embedders"]))
        layers = {name: arrays[f"layers/{name}"] for name in embedders}
        found = Classifier(categories, embedders, layers, arrays["biases"], arrays["weights"])
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{len(data)} bytes that are no classifier: {str(error)[:200]}") from None
    n = len(categories)
    fits = found.biases.shape == (n,) and found.weights.shape == (2,)
    if not fits or any(layer.ndim != 2 or len(layer) != n for layer in layers.values()):
        raise ValueError(f"a classifier of {n} categories with arrays of other shapes")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError("a classifier with numbers that are not finite")
    return found


def _products(rows: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """(N, C) float64: rows (N, D) times the layer (C, D), a block at a time.

    In single precision the last bits of a row's products depend on how many rows are multiplied at once, and the files
    of a gallery must not depend on the nights in which its photos came.
    """
    blocks = (rows[start : start + BLOCK].astype(np.float64) for start in range(0, len(rows), BLOCK))
    return np.concatenate([np.zeros((0, len(layer))), *(block @ layer.T.astype(np.float64) for block in blocks)])


def box_logits(hypotheses: Hypotheses, n_categories: int) -> np.ndarray:
    """(N, C) float64: the logarithm of each category's fused score, at least that of `FLOOR`.

    >>> box_logits(Hypotheses(np.array([[2, 0]]), np.array([[1.0, 0.0]])), 2).round(2).tolist()
    [[-4.61, 0.0]]
    """
    scores = np.full((len(hypotheses), n_categories), FLOOR)
    row, place = np.nonzero(hypotheses.real)
    scores[row, hypotheses.category_id[row, place] - 1] = hypotheses.score[row, place]
    logs: np.ndarray = np.log(np.maximum(scores, FLOOR))
    return logs


@dataclass(frozen=True)
class Examples:
    """Labelled items to fit to."""

    label: np.ndarray  # (N,) int, true category id, from 1
    hypotheses: Hypotheses  # of the N items, scores those of the fused boxes
    embeddings: Mapping[str, np.ndarray]  # embedder -> (N, D) float32, unit length

    def __len__(self) -> int:
        return len(self.label)

    def where(self, rows: np.ndarray) -> "Examples":
        kept = {name: matrix[rows] for name, matrix in self.embeddings.items()}
        return Examples(self.label[rows], self.hypotheses[rows], kept)


def joined(parts: Sequence[Examples]) -> Examples:
    """Several examples, of the same embedders, as one."""
    width = max(part.hypotheses.category_id.shape[1] for part in parts)

    def padded(values: np.ndarray) -> np.ndarray:
        return np.pad(values, ((0, 0), (0, width - values.shape[1])))

    ids, scores = (
        np.concatenate([padded(getattr(part.hypotheses, name)) for part in parts]) for name in ("category_id", "score")
    )
    embeddings = {name: np.concatenate([part.embeddings[name] for part in parts]) for name in parts[0].embeddings}
    return Examples(np.concatenate([part.label for part in parts]), Hypotheses(ids, scores), embeddings)


def fit(learned: Examples, held_out: Examples, categories: Sequence[str], embedders: Mapping[str, str]) -> Classifier:
    """Fit the layer to `learned` and the two weights to `held_out`.

    Detectors and embedders are surer of what they were trained with than of other photos, so the weights need items
    that they were not trained with. A rare category counts by the square root of its share. `embedders` maps the names
    in the examples' embeddings to the sha256 of their weights. ValueError: no example.
    """
    names, n = list(embedders), len(categories)
    features = np.concatenate([learned.embeddings[name] for name in names], axis=1)
    labels = learned.label - 1
    importance = 1 / np.sqrt(np.bincount(labels, minlength=n))[labels]
    layer, biases = softmax_regression.fit(features, labels, n, DECAY, importance=importance)
    ends = np.cumsum([learned.embeddings[name].shape[1] for name in names])[:-1]
    layers = {name: part.astype(np.float32) for name, part in zip(names, np.split(layer, ends, axis=1), strict=True)}
    found = Classifier(tuple(categories), dict(embedders), layers, biases.astype(np.float32), np.ones(2, np.float32))
    return with_weights(found, held_out)


def with_weights(classifier: Classifier, examples: Examples) -> Classifier:
    """The same layer, with its two weights fitted to these examples."""
    logits = classifier.logits(examples.hypotheses, examples.embeddings)
    weights = logit_pool.fit(logits, examples.label - 1)
    return dataclasses.replace(classifier, weights=weights.astype(np.float32))
