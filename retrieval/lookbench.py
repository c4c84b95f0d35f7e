"""LookBench's figures: fine and coarse Recall@k and nDCG@k of each subset, from photos with graded attributes.

A shop photo is coarsely right for a consumer photo when their attributes `category` are equal, finely right when those
and their `main_attribute` are. Recall@k is the share of queries with a right photo among the first k; nDCG@k counts
every right photo with relevance 1. A query without any right photo is worth 0. Figures are fractions in [0, 1].

Source: arXiv:2601.14706 and its package look-bench: its Recall and NDCG on these labels. The paper's appendix words
both by the share of attributes that agree; the package has equal labels only. Where we differ: a list that ends before
place k counts as wrong from there on, where the package always sorts the whole gallery.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from postproc.places import places
from retrieval.list_metrics import first_ranks, ndcg
from retrieval.photo_lists import join_photos
from retrieval.rankings import Rankings

KS = (1, 5, 10, 20)
GRADES = {"coarse": ("category",), "fine": ("category", "main_attribute")}  # attributes that must be equal
SHARED = ("", "noise")  # subsets whose shop photos are in every gallery
WHOLE = "all"  # the subset of queries that name none


def label_figures(ranked: np.ndarray, query_label: np.ndarray, gallery_label: np.ndarray) -> dict[str, Any]:
    """Recall@k and nDCG@k where rows of equal labels are right for each other.

    Args:
        ranked: (Q, K) int, rows of the gallery, best first, each at most once a list; -1 for none.
        query_label: (Q,) of any type that can be sorted.
        gallery_label: (N,) of the same type.

    Returns:
        `{"recall": {"1", "5", "10", "20"}, "ndcg": likewise, "queries": Q}`; None instead of figures where Q is 0.

    >>> label_figures(np.array([[1, 0]]), np.array(["skirt"]), np.array(["skirt", "vest"]))["recall"]["5"]
    1.0
    """
    labels, number = np.unique(np.concatenate([query_label, gallery_label]), return_inverse=True)
    asked, held = number[: len(query_label)], np.append(number[len(query_label) :], -1)  # row -1 has no label
    found = held[ranked[:, : max(KS)]] == asked[:, None]
    relevant, n = np.bincount(held[:-1], minlength=len(labels))[asked], len(asked)
    first = first_ranks(found)
    recall = {str(k): float(((first > 0) & (first <= k)).mean()) if n else None for k in KS}
    return {"recall": recall, "ndcg": {str(k): float(ndcg(found, relevant, k).mean()) if n else None for k in KS}} | {
        "queries": n
    }


def graded_figures(rankings: Rankings, photos: pa.Table) -> dict[str, Any]:
    """`{"coarse": {subset: figures}, "fine": likewise}` of a ranking; {} where no consumer photo is graded.

    Queries are the consumer photos with a `category` and a `main_attribute`. A photo's `subset` says where it belongs;
    queries without one are those of subset "all". A subset's gallery are its shop photos and those of subset "noise" or
    of none: others are passed over in the lists. Figures are those of `label_figures` and `short`, the number of
    queries whose list has fewer than 20 photos of the gallery though there are more: with a greater `search.top_k` the
    figures at 20 may be higher.

    Args:
        rankings: lists of items; they are joined to one a photo.
        photos: image_id, source and `attributes` (a map) of an image set.
    """
    known = {name: _attribute(photos, name) for name in ("subset", "category", "main_attribute")}
    source = np.asarray(photos["source"].to_pylist(), dtype=object)
    is_query = (source == "user") & (known["category"] != "") & (known["main_attribute"] != "")
    if not is_query.any():
        return {}
    image_id = photos["image_id"].to_numpy()
    lists = join_photos(rankings).results
    listed = np.arange(lists.gallery_image_id.shape[1]) < lists.gallery_count[:, None]
    figures: dict[str, Any] = {grade: {} for grade in GRADES}
    for subset in sorted(set(known["subset"][is_query])):
        queries = np.flatnonzero(is_query & (known["subset"] == subset))
        gallery = np.flatnonzero((source == "shop") & np.isin(known["subset"], [subset, *SHARED]))
        list_of = places(lists.query_image_id, image_id[queries])
        ranked = np.where(listed, places(image_id[gallery], lists.gallery_image_id), -1)[list_of]
        ranked[list_of < 0] = -1
        order = np.argsort(ranked < 0, axis=1, kind="stable")  # what the gallery lacks goes to the end
        ranked = np.take_along_axis(ranked, order, axis=1)
        short = int(((ranked >= 0).sum(axis=1) < min(max(KS), len(gallery))).sum())
        for grade, names in GRADES.items():
            label = _labels([known[name] for name in names])
            one = label_figures(ranked, label[queries], label[gallery])
            figures[grade][subset or WHOLE] = one | {"short": short}
    return figures


def _attribute(photos: pa.Table, name: str) -> np.ndarray:
    """(N,) object: one attribute of every photo as text, "" where it has none."""
    values = pc.map_lookup(photos["attributes"], query_key=pa.scalar(name), occurrence="first")
    return np.asarray(pc.fill_null(values, "").to_pylist(), dtype=object)


def _labels(columns: list[np.ndarray]) -> np.ndarray:
    """(N,) int64, equal where all these texts are."""
    numbers: dict[tuple[str, ...], int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in zip(*columns, strict=True)], np.int64)
