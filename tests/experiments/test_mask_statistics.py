"""Statistics of masks: rank measures against their definitions, and the tables of results."""

import numpy as np
import pytest

from experiments.stickers.mask_statistics import auc, rank_correlation, render_tables


@pytest.mark.parametrize("ties", [False, True])
def test_rank_measures_follow_from_their_definitions(ties):
    rng = np.random.default_rng(0)
    draw = (lambda n: rng.integers(0, 5, n).astype(float)) if ties else rng.random
    first, second = draw(40), draw(40)
    ranks = [
        [sum(other < each for other in values) + sum(values == each) / 2 for each in values]
        for values in (first, second)
    ]
    expected = np.corrcoef(*ranks)[0, 1]
    np.testing.assert_allclose(rank_correlation(first, second), expected, atol=1e-12)
    present, absent = draw(30) + 0.5, draw(20)
    wins = sum((a > b) + (a == b) / 2 for a in present for b in absent)
    np.testing.assert_allclose(auc(present, absent), wins / 600, atol=1e-12)


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
