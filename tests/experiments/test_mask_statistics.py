"""Statistics of masks: rank measures against SciPy, and the tables that they are printed in."""

import numpy as np
import pytest
from scipy import stats

from experiments.stickers.mask_statistics import auc, rank_correlation, render_tables


@pytest.mark.parametrize("ties", [False, True])
def test_rank_measures_equal_those_of_scipy(ties):
    rng = np.random.default_rng(0)
    draw = (lambda n: rng.integers(0, 5, n).astype(float)) if ties else rng.random
    first, second = draw(40), draw(40)
    expected = stats.spearmanr(first, second).statistic
    np.testing.assert_allclose(rank_correlation(first, second), expected, atol=1e-12)
    present, absent = draw(30) + 0.5, draw(20)
    expected = stats.mannwhitneyu(present, absent).statistic / 600
    np.testing.assert_allclose(auc(present, absent), expected, atol=1e-12)


def test_tables_have_a_row_for_each_statistic_and_threshold():
    results = {
        "statistics": {"score": {"listed": 0.5, "IoU": -0.25}},
        "presence at": {"0.8": {"listed": [0.984, 0.3333]}},
    }
    assert render_tables(results).split("\n") == [
        "| statistic | listed | IoU |",
        "|---|---|---|",
        "| score | 0.500 | -0.250 |",
        "",
        "| presence | listed |",
        "|---|---|",
        "| 0.8 | 98% / 33% |",
        "",
    ]
