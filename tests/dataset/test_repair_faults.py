"""Damage that hides other damage: one repair mends all of it."""

import os

import pytest

from seediff_jax.dataset.repair import repair
from seediff_jax.dataset.verify import verify
from seediff_jax.files.folder import open_folder
from tests.helpers.format_runs import tree
from tests.helpers.stored_runs import run

# pycocotools decodes by a way of NumPy 1.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("shard", [0, 2])
@pytest.mark.parametrize("lines", ["unlink", "cut", "folder"])
def test_files_of_samples_whose_lines_are_lost_are_checked_by_the_list_of_the_run(
    made, copy, shard, lines
):
    place, index = copy, 3 * shard + 1
    path = place / f"shards/{shard:05d}.jsonl"
    if lines == "cut":
        os.truncate(path, 10)
    else:
        path.unlink()
    if lines == "folder":
        path.mkdir()
    for journal in place.glob("shards/*.journal/*"):
        journal.write_bytes(b"damaged")
    (place / f"overlay/{index:06d}.png").write_bytes(b"damaged")
    folder = open_folder(place)
    problems = verify(folder)
    assert f"overlay/{index:06d}.png" in [problem.name for problem in problems]
    assert repair(folder, problems) == 1
    if lines == "folder":
        path.rmdir()
    assert run(place) == [index]
    assert verify(folder) == []
    assert tree(place) == tree(made)
