"""Rank fusion: by hand, against a plain loop over dictionaries, and beside ranx."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import postproc.rank_fusion
from postproc.rank_fusion import METHODS, NORMALISATIONS, fuse_lists


def lists(*per_list):
    """One query's lists from [(id, score), …] each."""
    return [
        (
            np.array([[name for name, _ in one]], int).reshape(1, -1),
            np.array([[score for _, score in one]], float).reshape(1, -1),
        )
        for one in per_list
    ]  # fmt: skip


A, B = [(1, 0.9), (2, 0.5), (3, 0.1)], [(3, 8.0), (4, 6.0), (1, 4.0)]  # normalised: 1, 0.5, 0 and 1, 0.5, 0


@pytest.mark.parametrize(
    ("per_list", "how", "want"),
    [
        ([A], {"k": 60}, [(1, 1 / 61), (2, 1 / 62), (3, 1 / 63)]),  # one list: as it stands
        ([A, B], {"k": 60}, [(1, 1 / 61 + 1 / 63), (3, 1 / 63 + 1 / 61), (2, 1 / 62), (4, 1 / 62)]),  # ties: lower id
        ([A, B], {"k": 0, "weights": [1, 3]}, [(3, 1 / 3 + 3 / 1), (1, 1 / 1 + 3 / 3), (4, 3 / 2), (2, 1 / 2)]),
        ([A, B], {"k": 0, "weights": [0, 2]}, [(3, 2 / 1), (4, 2 / 2), (1, 2 / 3)]),  # weight 0: left out
        ([[(-1, 0), (5, 1), (5, 1), (6, 1)]], {"k": 0}, [(5, 1 / 1), (6, 1 / 3)]),  # nothing, and the same twice
        ([A, B], {"method": "combsum"}, [(1, 1 + 0), (3, 0 + 1), (2, 0.5), (4, 0.5)]),
        (
            [A, B],
            {"method": "combmnz", "weights": [2, 1]},
            [(1, 2 * (2 * 1 + 0)), (3, 2 * (0 + 1)), (2, 2 * 0.5), (4, 0.5)],
        ),
        (
            [A],
            {"method": "combsum", "normalisation": "z-score"},
            [(1, 1.5**0.5), (2, 0), (3, -(1.5**0.5))],
        ),  # 0.4 / 0.327
        ([[(9, 7.0)], A], {"method": "combsum"}, [(1, 1), (2, 0.5), (3, 0), (9, 0)]),  # a list of equal scores gives 0
        ([[(-1, -np.inf)], []], {}, []),  # nothing at all
    ],
)
def test_by_hand(per_list, how, want):
    ids, scores = fuse_lists(lists(*per_list), top_k=5, **how)
    assert ids.tolist() == [[name for name, _ in want] + [-1] * (5 - len(want))]
    np.testing.assert_allclose(scores[0, : len(want)], [score for _, score in want], rtol=1e-6, atol=1e-7)
    assert (scores[0, len(want) :] == -np.inf).all()
    assert (ids.dtype, scores.dtype) == (np.int64, np.float32)


def plain(given_lists, method, weights, k, top_k, normalisation):
    ids, scores = [], []
    for query in range(len(given_lists[0][0])):
        total, count = {}, {}
        for (names, values), weight in zip(given_lists, weights, strict=True):
            one = [(n, float(v)) for n, v in zip(names[query], values[query], strict=True) if n >= 0]
            found = np.array([v for _, v in one])
            low, spread = 0, 1
            if one:
                by_range = normalisation == "min-max"
                low, spread = (found.min(), np.ptp(found)) if by_range else (found.mean(), found.std())
            seen = set()
            for place, (name, value) in enumerate(one, 1):
                if name in seen or not weight:
                    continue
                seen.add(name)
                worth = 1 / (k + place) if method == "rrf" else (value - low) / spread if spread >= 1e-9 else 0
                total[name] = total.get(name, 0) + weight * worth
                count[name] = count.get(name, 0) + 1
        if method == "combmnz":
            total = {name: value * count[name] for name, value in total.items()}
        best = sorted(total, key=lambda name: (-np.float32(total[name]), name))[:top_k]
        ids.append(best + [-1] * (top_k - len(best)))
        scores.append([total[name] for name in best] + [-np.inf] * (top_k - len(best)))
    return np.array(ids, int).reshape(-1, top_k), np.array(scores).reshape(-1, top_k)


@given(
    st.integers(0, 7), st.lists(st.integers(0, 6), min_size=1, max_size=4), st.sampled_from(METHODS),
    st.sampled_from(NORMALISATIONS), st.integers(0, 60), st.integers(1, 12), st.sampled_from([1, 3, 1024]),
    st.integers(0, 10_000),
)  # fmt: skip
def test_against_a_plain_loop(n_queries, widths, method, normalisation, k, top_k, lines, seed):
    rng = np.random.default_rng(seed)
    given_lists = [
        (rng.integers(-1, 8, (n_queries, width)), rng.integers(0, 4, (n_queries, width)).astype(np.float32))
        for width in widths
    ]
    weights = rng.integers(0, 3, len(widths)) + np.eye(len(widths), dtype=int)[0]
    before, postproc.rank_fusion.LINES = postproc.rank_fusion.LINES, lines
    try:
        ids, scores = fuse_lists(given_lists, method, weights, k, top_k, normalisation=normalisation)
    finally:
        postproc.rank_fusion.LINES = before
    want_ids, want = plain(given_lists, method, weights, k, top_k, normalisation) if n_queries else (ids, scores)
    np.testing.assert_allclose(scores, want, rtol=1e-5, atol=1e-6)
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    for mine, theirs, values in zip(ids.tolist(), want_ids.tolist(), want.tolist(), strict=True):
        near = lambda a, b: a == b or abs(a - b) < 1e-5  # noqa: E731 - the plain sum may round to a tie or off it
        assert len(set(mine) - {-1}) == len([name for name in mine if name >= 0])
        for place, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            alone = not any(near(values[place], other) for at, other in enumerate(values) if at != place)
            assert a == b or not alone or place == top_k - 1


@pytest.mark.slow  # its functions are compiled first, which takes a minute or two
def test_beside_ranx():
    from ranx import Run, fuse

    rng = np.random.default_rng(2)
    given_lists = [
        (rng.permuted(np.tile(np.arange(30), (6, 1)), axis=1)[:, :12], -np.sort(-rng.random((6, 12)), axis=1))
        for _ in range(3)
    ]
    runs = [
        Run({f"q{q}": {str(n): float(s) for n, s in zip(ids[q], scores[q], strict=True)} for q in range(6)})
        for ids, scores in given_lists
    ]
    for method, theirs, how in (
        ("rrf", "rrf", {"params": {"k": 60}}),
        ("combsum", "sum", {"norm": "min-max"}),
        ("combmnz", "mnz", {"norm": "min-max"}),
        ("combsum", "sum", {"norm": "zmuv"}),
    ):
        norm = "z-score" if how.get("norm") == "zmuv" else "min-max"
        ids, scores = fuse_lists(given_lists, method, top_k=30, normalisation=norm)
        want = fuse(runs, method=theirs, **({"norm": None} | how)).to_dict()
        for q in range(6):
            mine = {str(n): s for n, s in zip(ids[q].tolist(), scores[q].tolist(), strict=True) if n >= 0}
            assert mine == pytest.approx(want[f"q{q}"], rel=1e-5, abs=1e-6)


def test_queries_do_not_see_each_other():
    rng = np.random.default_rng(4)
    given_lists = [(rng.integers(0, 50, (40, 20)), rng.random((40, 20))) for _ in range(3)]
    ids, scores = fuse_lists(given_lists, "combmnz", top_k=15)
    order = rng.permutation(40)
    for mine, want in zip(
        fuse_lists([(a[order], b[order]) for a, b in given_lists], "combmnz", top_k=15), (ids, scores), strict=True
    ):
        np.testing.assert_array_equal(mine, want[order])


GOOD = (np.array([[1, 2]]), np.array([[0.5, 0.25]]))


@pytest.mark.parametrize(
    ("given_lists", "how", "message"),
    [
        ([], {}, "want lists of the same queries"),
        ([GOOD, (np.zeros((2, 1), int), np.zeros((2, 1)))], {}, "want lists of the same queries"),
        ([(np.array([[1, 2]]), np.array([[0.5]]))], {}, "list 0 has ids"),
        ([(np.array([[1.5, 2]]), np.array([[0.5, 1]]))], {}, "list 0 has ids float64"),
        ([GOOD, (np.array([[1, 2]]), np.array([[0.5, np.nan]]))], {}, "list 1, query 0, place 1: id 2, score nan"),
        ([(np.array([[-2, 2]]), np.array([[0.5, 1]]))], {}, "id -2"),
        ([GOOD], {"method": "borda"}, "'borda'"),
        ([GOOD], {"normalisation": "rank"}, "'rank'"),
        ([GOOD], {"weights": [1, 1]}, "1 lists but weights"),
        ([GOOD], {"weights": [0]}, "not all 0"),
        ([GOOD], {"weights": [np.nan]}, "finite"),
        ([GOOD], {"k": -1}, "k -1"),
        ([GOOD], {"top_k": 0}, "top_k 0"),
    ],
)
def test_wrong_input_is_refused(given_lists, how, message):
    with pytest.raises(ValueError, match=message):
        fuse_lists(given_lists, **how)
