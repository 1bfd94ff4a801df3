"""A dataset folder that goes on after a kill at any moment, and ends with the same bytes."""

import errno
import hashlib
import itertools
import json
import os

import numpy as np
import pytest

from seediff_jax.dataset.checksums import FAILED, add_checksum
from seediff_jax.dataset.complete import complete_counts, mark_incomplete
from seediff_jax.dataset.journal import Journal
from seediff_jax.dataset.resume import find_existing, remove_leftovers
from tests.helpers.crashes import killed_at, tree
from tests.helpers.letter_runs import BAD, Place, Run, encoded


@pytest.fixture(params=["disk", "memory"])
def place(request, tmp_path):
    made = Place(request.param, tmp_path)
    yield made
    made.forget()


@pytest.fixture(autouse=True)
def no_sync(monkeypatch):
    """Files are synced for the sake of power cuts, which no test has; it would take most time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def lines(folder, name):
    return [json.loads(line) for line in folder.read(name).splitlines()]


def test_a_finished_folder_holds_every_file_of_every_moment(place):
    folder = place.finished(Run())
    good = [index for index in range(8) if index != BAD]
    assert folder.names("image") == [f"{index:06d}.txt" for index in good]
    assert folder.read("letters/0.txt") == b"mask 0\nmask 1\nmask 2\n"
    assert folder.read("letters/1.txt") == b"mask 3\nmask 5\n"
    assert folder.read("letters/all.txt").splitlines()[0] == b"0,1,2,3,5,6,7"
    assert [row["index"] for row in lines(folder, "manifest.jsonl")] == good
    assert lines(folder, "failed.jsonl") == [
        add_checksum({"index": BAD, FAILED: "latents are not finite"})
    ]
    finished = ["00000.json", "00000.jsonl", "00001.json", "00001.jsonl"]
    unfilled = ["00002.journal", "00002.jsonl", "00002.open.json"]
    assert folder.names("shards") == [*finished, *unfilled, "closed.json"]
    counts = {"num_images": 8, "samples": 7, "failed": 1, "empty": 0}
    assert counts.items() <= json.loads(folder.read("shards/closed.json")).items()


def test_a_finished_folder_has_counts_until_it_is_marked_incomplete(place):
    folder = place.finished(Run())
    assert complete_counts(folder) == {"num_images": 8, "samples": 7, "failed": 1, "empty": 0}
    mark_incomplete(folder)
    assert complete_counts(folder) is None


@pytest.mark.parametrize("content", [b"", b"7", b"[]", b'{"num_images": 8}', b"\xff"])
def test_a_damaged_mark_of_the_end_is_written_again(place, content):
    folder = place.finished(Run())
    expected = tree(folder)
    folder.write("shards/closed.json", content)
    assert complete_counts(folder) is None
    place.run(folder, Run())
    assert tree(folder) == expected


def test_summaries_and_records_hold_the_hash_of_every_file(place):
    folder = place.finished(Run())
    told = {}
    for name in ("00000.json", "00001.json", "00002.open.json", "closed.json"):
        told |= json.loads(folder.read(f"shards/{name}"))["files"]
    for row in lines(folder, "manifest.jsonl"):
        content = folder.read(row["image"])
        assert hashlib.sha256(content).hexdigest() == row["sha256"]["image.txt"]
        told[row["image"]] = None
    for name, facts in told.items():
        if facts is not None:
            content = folder.read(name)
            digest = hashlib.sha256(content).hexdigest()
            assert facts == {"bytes": len(content), "sha256": digest}
    untold = {name for name, content in tree(folder).items() if content is not None} - told.keys()
    assert untold == {
        *(f"shards/{name}" for name in ("00000.json", "00001.json", "00002.open.json")),
        "shards/closed.json",
        "shards/00002.journal/000006+2",
    }


SCENARIOS = {
    "one run": ([], Run(), Run()),
    "smaller blocks": ([], Run(), Run(batch_size=2)),
    "larger blocks": ([], Run(batch_size=1), Run()),
    "killed, then grown": ([], Run(num_images=5), Run()),
    "grown, then killed": ([Run(num_images=5)], Run(), Run()),
    "grown within a shard, then killed": ([Run(num_images=7)], Run(), Run()),
}


CASES = [(kind, name) for kind in ("memory", "disk") for name in SCENARIOS]
QUICK = [*CASES[: len(SCENARIOS)], ("disk", "one run"), ("disk", "grown, then killed")]
CASES = [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]


@pytest.mark.parametrize(("place", "scenario"), CASES, indirect=["place"])
def test_a_run_killed_at_any_call_is_completed_to_the_same_bytes(place, scenario):
    before, killed, after = SCENARIOS[scenario]
    expected = tree(place.finished(Run()))
    for number in itertools.count():
        place.forget()
        folder = place.finished(*before)
        with killed_at(number) as calls:
            place.run(folder, killed)
        if calls[-1] != "killed":
            break
        place.run(folder, after)
        assert tree(folder) == expected, f"killed before call {number}: {calls[:number][-3:]}"
    assert number > 20  # else the calls were not seen


@pytest.mark.parametrize("seed", range(8))
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_bytes(place, seed):
    expected = tree(place.finished(Run()))
    random, folder = np.random.default_rng(seed), place.folder()
    for kills in itertools.count():
        run = Run(5 if kills < 2 else 8, int(random.integers(1, 5)))
        with killed_at(int(random.integers(2, 40))) as calls:
            place.run(folder, run)
        if run == Run(8, run.batch_size) and calls[-1] != "killed":
            break
    assert kills > 1
    assert tree(folder) == expected


@pytest.mark.slow
@pytest.mark.parametrize("place", ["memory"], indirect=True)
def test_a_run_killed_at_any_two_calls_is_completed_to_the_same_bytes(place):
    expected = tree(place.finished(Run()))
    for first in itertools.count():
        for second in itertools.count():
            place.forget()
            folder = place.folder()
            with killed_at(first) as calls:
                place.run(folder, Run())
            if calls[-1] != "killed":
                return
            with killed_at(second) as calls:
                place.run(folder, Run())
            if calls[-1] != "killed":
                break
            place.run(folder, Run())
            assert tree(folder) == expected, f"killed before the calls {first} and {second}"


def test_a_run_that_is_killed_loses_only_the_block_that_was_being_written(place):
    for number in itertools.count():
        place.forget()
        folder = place.folder()
        with killed_at(number) as calls:
            place.run(folder, Run())
        if calls[-1] != "killed":
            break
        exists = find_existing(folder, Run().layout)
        blocks = [entry for entry in (0, 3, 6) if exists[entry : entry + 3].all()]
        assert exists.sum() == sum(len(exists[entry : entry + 3]) for entry in blocks)
        assert blocks == [0, 3, 6][: len(blocks)]


def test_an_error_of_a_file_that_cannot_be_written_leaves_what_was_written(place, monkeypatch):
    folder = place.folder()
    dataset = place.dataset(folder, Run().layout)
    dataset.write([encoded(0), encoded(1)])
    with monkeypatch.context() as patch:
        patch.setattr(type(folder), "write_all", _full)
        with pytest.raises(OSError, match="No space left"):
            dataset.write([encoded(2)])
    assert find_existing(folder, dataset.layout).tolist() == [True, True, *[False] * 6]


def _full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "image/000002.txt")


def test_a_folder_with_samples_beyond_those_asked_for_is_refused(place):
    folder = place.finished(Run())
    message = "has samples up to 7, beyond num_images=7; ask for at least as many"
    with pytest.raises(ValueError, match=message):
        find_existing(folder, Run(num_images=7).layout)


@pytest.mark.parametrize("num_images", [1, 5])
def test_a_finished_shard_beyond_num_images_is_refused(place, num_images):
    folder = place.finished(Run(num_images=6))
    message = f"has samples up to 5, beyond num_images={num_images}"
    with pytest.raises(ValueError, match=message):
        find_existing(folder, Run(num_images=num_images).layout)
    assert find_existing(folder, Run(num_images=6).layout).all()


def test_a_run_grows_by_steps_to_the_bytes_of_a_run_at_once(place):
    folder = place.finished(*(Run(num_images=count, batch_size=2) for count in range(1, 9)))
    assert tree(folder) == tree(place.finished(Run()))


@pytest.mark.parametrize("batch_size", [1, 2, 8, 100])
def test_the_size_of_blocks_leaves_no_trace(place, batch_size):
    folder = place.finished(Run(batch_size=batch_size))
    assert tree(folder) == tree(place.finished(Run()))


def test_samples_of_a_damaged_journal_are_made_again_by_the_same_command(place):
    folder = place.folder()
    place.run(folder, Run(batch_size=1), blocks=2)
    folder.write("shards/00000.journal/000001+1", b"damaged")
    message = r"00000\.journal/000001\+1 was damaged .* and is removed; run the same command"
    with pytest.raises(ValueError, match=message):
        place.run(folder, Run(batch_size=1))
    exists = find_existing(folder, Run().layout)
    assert np.flatnonzero(exists).tolist() == [0, 2]
    place.run(folder, Run())
    assert tree(folder) == tree(place.finished(Run()))


def test_a_failed_sample_leaves_no_file_of_a_run_that_was_killed_before_it_noted_them(place):
    folder = place.folder()
    folder.write(f"image/{BAD:06d}.txt", b"whole, but no journal tells of it")
    place.run(folder, Run())
    assert not folder.exists(f"image/{BAD:06d}.txt")
    assert tree(folder) == tree(place.finished(Run()))


def test_a_failed_sample_counts_as_done_and_has_no_file(place):
    folder = place.folder()
    dataset = place.dataset(folder, Run().layout)
    dataset.write([encoded(3), encoded(BAD), encoded(5)])
    assert np.flatnonzero(find_existing(folder, dataset.layout)).tolist() == [3, 4, 5]
    assert folder.names("image") == ["000003.txt", "000005.txt"]


def test_a_summary_counts_samples_failures_and_empty_classes(place):
    folder = place.folder()
    dataset = place.dataset(folder, Run().layout)
    empty = encoded(3)
    empty.record["empty"] = ["cat"]
    dataset.write([empty, encoded(BAD), encoded(5)])
    dataset.write([encoded(6), encoded(7)])
    dataset.finish(1)
    dataset.finish(2)
    assert dataset.counts(1) == {"samples": 2, "failed": 1, "empty": 1}
    assert dataset.counts(2) == {"samples": 2, "failed": 0, "empty": 0}


def test_a_shard_that_lost_samples_is_not_finished(place):
    folder = place.folder()
    place.run(folder, Run(batch_size=1), blocks=2)
    before = tree(folder)
    with pytest.raises(ValueError, match="shard 0 of .* has 2 of its 3 samples; when no other run"):
        place.dataset(folder, Run().layout).finish(0)
    assert tree(folder) == before


def test_journals_hold_only_what_shard_files_need(place):
    folder = place.folder()
    place.dataset(folder, Run().layout).write([encoded(0)])
    (sample,) = Journal(folder, 0, range(3)).samples()
    assert sample.files == {"mask.txt": b"mask 0\n"}
    assert sample.record["image"] == "image/000000.txt"
    assert sample.record["sha256"].keys() == {"image.txt", "mask.txt"}


def test_what_killed_runs_left_is_removed_and_nothing_else(place):
    folder = place.finished(Run())
    expected = tree(folder)
    for name in (
        "00000.journal/000000+3",
        "00000.open.json",
        "00001.json.part",
        "scratch-1/letters-0",
    ):
        folder.write(f"shards/{name}", b"")
    remove_leftovers(folder)
    assert tree(folder) == expected
