"""Flags are judged by pairs of processes, not by means."""

import pytest

from experiments.benchmarks.cpu_flags import DEFAULT, rows_of, verdict


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [((0.9, 0.99), "faster"), ((0.2, 1.01), "noise"), ((1.0, 0.9), "noise"), ((1.1, 3), "slower")],
)
def test_a_set_wins_only_if_it_wins_every_pair(ratios, expected):
    assert verdict(ratios) == expected


def test_a_pair_is_compared_with_itself():
    """The machine is twice as slow in the second pair, and the ratio is the same."""
    found = {"product": {DEFAULT: [0.010, 0.020], "onednn": [0.008, 0.016]}}
    assert rows_of(found) == [
        ("product", "onednn", "15.0", "12.0", "0.80", "0.80 to 0.80", "faster")
    ]
