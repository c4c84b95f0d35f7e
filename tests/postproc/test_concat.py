"""Concatenated rows: unit length, and inner products that are the weighted mean of the models' cosines."""

import numpy as np
import pytest

from postproc.concat import concat


def unit(n, d, seed, dtype=np.float64):
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(dtype)


@pytest.mark.parametrize("weights", [None, [1, 1], [3, 1], [0, 2.5], np.array([0.2, 0.1])])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_inner_product_is_the_weighted_mean_of_cosines(weights, dtype):
    a, b = unit(6, 8, 1, dtype), unit(6, 5, 2, dtype)
    wa, wb = (1, 1) if weights is None else weights
    joined = concat([a, b], weights)
    assert joined.shape == (6, 13)
    assert joined.dtype == np.float32
    want = (wa * (a.astype(float) @ a.T.astype(float)) + wb * (b.astype(float) @ b.T.astype(float))) / (wa + wb)
    np.testing.assert_allclose(joined @ joined.T, want, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(joined, axis=1), 1, atol=2e-3 if dtype == np.float16 else 1e-6)


def test_one_model_is_itself_and_inputs_stay():
    a = unit(3, 4, 0, np.float32)
    before = a.copy()
    np.testing.assert_array_equal(concat([a], [7]), before)
    np.testing.assert_array_equal(a, before)
    assert concat([np.zeros((0, 3)), np.zeros((0, 2))]).shape == (0, 5)


@pytest.mark.parametrize(
    ("features", "weights", "message"),
    [
        ([], None, "no features"),
        ([unit(2, 3, 0), unit(3, 3, 0)], None, "same items"),
        ([unit(2, 3, 0), unit(2, 3, 0)], [1], "one weight per model"),
        ([unit(2, 3, 0), unit(2, 3, 0)], [1, -1], "not all 0"),
        ([unit(2, 3, 0), unit(2, 3, 0)], [0, 0], "not all 0"),
        ([unit(2, 3, 0), unit(2, 3, 0) * [[1], [2]]], None, "model 1, row 1 has length 2"),
        ([unit(2, 3, 0) * [[1], [0]]], None, "model 0, row 1 has length 0"),
        ([unit(2, 3, 0) * [[np.nan], [1]]], None, "model 0, row 0"),
        ([unit(2, 3, 0)[0]], None, "same items"),
    ],
)
def test_wrong_input_is_refused(features, weights, message):
    with pytest.raises(ValueError, match=message):
        concat(features, weights)
