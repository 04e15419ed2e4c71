import math
import warnings

import numpy as np
import pytest

from indistill.retrieval.evaluation.intervals import Estimate, bootstrap_means, estimate_means

NAN = math.nan


def test_an_interval_holds_the_mean_of_its_column_and_leaves_nan_out() -> None:
    values = np.random.default_rng(0).random((60, 2))
    values[::3, 1] = NAN
    found = estimate_means(["a", "b"], values)
    assert list(found) == ["a", "b"]
    assert found["a"].mean == pytest.approx(values[:, 0].mean())
    assert found["b"].mean == pytest.approx(np.nanmean(values[:, 1]))
    low, high = bootstrap_means(values)
    assert ([e.low for e in found.values()], [e.high for e in found.values()]) == (low.tolist(), high.tolist())
    assert all(0 < e.low < e.mean < e.high < 1 for e in found.values())


def test_a_column_of_nan_alone_gives_nan_without_a_warning() -> None:
    found = estimate_means(["a", "b"], np.array([[NAN, 0.5], [NAN, 0.5]]))
    assert [math.isnan(x) for x in (found["a"].mean, found["a"].low, found["a"].high)] == [True] * 3
    assert found["b"] == Estimate(0.5, 0.5, 0.5)


def test_draws_without_a_figure_count_nowhere() -> None:
    values = np.array([[0.25], [NAN], [NAN]])  # many draws hold the two others alone
    with warnings.catch_warnings(action="error"):
        low, high = bootstrap_means(values, resamples=50)
    assert (low[0], high[0]) == (0.25, 0.25)


def test_an_interval_has_the_percentiles_of_a_binomial() -> None:
    """Of a hundred figures that are half ones the mean of a draw is Binomial(100, 1/2) / 100: 40 to 60 hold 95 %."""
    values = np.repeat([0.0, 1.0], 50)[:, np.newaxis]
    low, high = bootstrap_means(values)
    assert (low[0], high[0]) == pytest.approx((0.40, 0.60), abs=0.011)


def test_an_interval_depends_on_the_seed_and_the_default_is_zero() -> None:
    values = np.random.default_rng(0).random((30, 1))
    assert bootstrap_means(values) == bootstrap_means(values, 2000, seed=0) != bootstrap_means(values, seed=1)


def test_all_columns_are_of_the_same_draws() -> None:
    values = np.random.default_rng(0).random((30, 1))
    low, high = bootstrap_means(np.hstack([values, values + 1]))
    assert (low[1] - low[0], high[1] - high[0]) == pytest.approx((1, 1))
