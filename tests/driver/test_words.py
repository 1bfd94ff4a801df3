"""Numbers in sentences."""

import pytest

from seediff_jax.driver.plan import counted, duration, size


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (counted(0, "shard"), "0 shards"),
        (counted(1, "shard"), "1 shard"),
        (counted(2, "shard"), "2 shards"),
        (counted(1, "class", "classes"), "1 class"),
        (counted(3, "class", "classes"), "3 classes"),
        (duration(1.2), "1 second"),
        (duration(0.3), "0 seconds"),
        (duration(119), "119 seconds"),
        (duration(120), "2.0 minutes"),
        (duration(2.5 * 3600), "2.5 hours"),
        (duration(2 * 86400), "2.0 days"),
        (size(512), "0.5 KiB"),
        (size(2.5 * 2**20), "2.5 MiB"),
        (size(12 * 2**30), "12.0 GiB"),
        (size(2**41), "2.0 TiB"),
    ],
)
def test_numbers_are_said_with_their_units(said, expected):
    assert said == expected
