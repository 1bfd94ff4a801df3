"""Samples of a run that has not finished a shard are found, whatever else is damaged there."""

import pytest

from seediff_jax.dataset.checksums import DamagedFile
from seediff_jax.dataset.layout import ShardLayout
from seediff_jax.dataset.shards import find_record
from seediff_jax.errors import UserError
from seediff_jax.files.folder import open_folder
from tests.helpers.stored_runs import BAD, NUM_IMAGES, SHARD_SIZE, run

LAYOUT = ShardLayout(NUM_IMAGES, SHARD_SIZE, 1)


def test_a_sample_is_found_in_the_journal_while_its_shard_is_unfinished(tmp_path):
    run(tmp_path / "out", ("files",), stop_at=2)
    folder = open_folder(tmp_path / "out")
    assert not folder.exists("shards/00000.jsonl")
    assert find_record(folder, LAYOUT, 1)["prompt"] == "ein Tier für 1"
    folder.write("shards/00000.journal/000000+1", b"damaged")
    assert find_record(folder, LAYOUT, 1)["index"] == 1
    with pytest.raises(DamagedFile, match=r"000000\+1 is damaged .*; --repair --output="):
        find_record(folder, LAYOUT, 0)
    with pytest.raises(UserError, match="does not have sample 2"):
        find_record(folder, LAYOUT, 2)


def test_a_sample_that_failed_is_said_to_have_failed_wherever_its_record_is(tmp_path):
    for stop_at in (5, None):
        run(tmp_path / "out", ("files",), stop_at=stop_at)
        with pytest.raises(UserError, match=f"sample {BAD} of .* failed: latents are not finite"):
            find_record(open_folder(tmp_path / "out"), LAYOUT, BAD)
