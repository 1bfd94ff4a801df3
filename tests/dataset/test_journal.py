"""The journal of a shard: what was added is read again, once, whatever a killed run left there."""

import zlib

import msgpack
import numpy as np
import pytest

from seediff_jax.dataset.encoding import EncodedSample
from seediff_jax.dataset.journal import DamagedFile, Journal

PATH = "shards/00003.journal"
MANY = range(2_000_000)


@pytest.fixture
def journal(folder):
    return Journal(folder, 3, MANY)


def sample(index):
    record = {
        "index": index,
        "prompt": "Löwe",
        "scores": [0.25, index / 3],
        "none": None,
        "sha256": {},
    }
    return EncodedSample(index, record, {"image.png": bytes([index % 256]) * 40, "empty": b""})


def samples(*indices):
    return [sample(index) for index in indices]


def test_samples_are_read_as_they_were_added(journal):
    added = samples(20, 21, 22)
    journal.add(added)
    assert list(journal.samples()) == added
    assert journal.indices() == {20, 21, 22}


def test_a_file_name_gives_its_first_sample_and_their_number(journal, folder):
    journal.add(samples(7, 8, 11))
    journal.add(samples(12))
    assert folder.names(PATH) == ["000007+2", "000011+1", "000012+1"]
    assert journal.entries() == [(7, 2), (11, 1), (12, 1)]


def test_samples_beyond_a_million_stay_in_order(journal):
    journal.add(samples(1_000_000))
    journal.add(samples(999_999))
    assert [each.index for each in journal.samples()] == [999_999, 1_000_000]


def test_a_shard_without_a_journal_has_no_samples(journal):
    assert journal.entries() == [] and journal.indices() == set() and not [*journal.samples()]
    journal.remove()


def test_files_that_are_not_entries_are_ignored_and_removed_with_the_journal(journal, folder):
    journal.add(samples(5))
    folder.write(f"{PATH}/000009+2.part", b"half of it")
    assert journal.indices() == {5}
    journal.remove()
    assert folder.names(PATH) == []


@pytest.mark.parametrize("seed", range(8))
def test_entries_that_overlap_give_each_sample_once_and_in_order(journal, seed):
    random = np.random.default_rng(seed)
    there = set()
    for first, count in zip(random.integers(0, 60, 9), random.integers(1, 30, 9), strict=True):
        journal.add(samples(*range(first, first + count)))
        there |= {*range(first, first + count)}
    assert list(journal.samples()) == samples(*sorted(there))
    assert journal.indices() == there


@pytest.mark.parametrize("seed", range(3))
def test_a_compact_journal_does_not_depend_on_how_it_came_to_be(folder, journal, seed):
    straight, random = Journal(folder, 4, MANY), np.random.default_rng(seed)
    straight.add(samples(*range(37)))
    for part in np.array_split(random.permutation(37), 11):
        journal.add(samples(*sorted(part.tolist())))
    for each in (straight, journal):
        each.compact()
    names = folder.names(PATH)
    assert names == ["000000+16", "000016+16", "000032+5"]
    assert names == folder.names("shards/00004.journal")
    for name in names:
        assert folder.read(f"{PATH}/{name}") == folder.read(f"shards/00004.journal/{name}")
    assert list(journal.samples()) == samples(*range(37))


def test_compaction_keeps_gaps(journal):
    journal.add(samples(3, 4, 9, 40))
    journal.compact()
    assert list(journal.samples()) == samples(3, 4, 9, 40)


def test_a_compact_journal_is_left_alone(journal, folder, monkeypatch):
    journal.add(samples(*range(20)))
    journal.compact()
    monkeypatch.setattr(type(folder), "write", None)
    journal.compact()
    assert folder.names(PATH) == ["000000+16", "000016+4"]


@pytest.mark.parametrize("folder", ["memory"], indirect=True)
def test_every_changed_byte_and_every_cut_is_found(journal, folder):
    journal.add(samples(5, 6))
    name = f"{PATH}/000005+2"
    content = folder.read(name)
    damaged = [content[:length] for length in range(len(content))] + [content + b"\0"]
    damaged += [
        content[:k] + bytes([content[k] ^ 1 << k % 8]) + content[k + 1 :]
        for k in range(len(content))
    ]
    for each in damaged:
        folder.write(name, each)
        with pytest.raises(DamagedFile, match=r"000005\+2 is damaged") as error:
            list(journal.samples())
        assert error.value.name == name


def test_an_entry_under_the_name_of_another_is_damaged(journal, folder):
    journal.add(samples(5, 6))
    folder.write(f"{PATH}/000007+2", folder.read(f"{PATH}/000005+2"))
    with pytest.raises(DamagedFile, match="other samples than its name says"):
        list(journal.samples())


@pytest.mark.parametrize("value", [7, {"index": 7}, [[7, {}]], [[7, {}, {}, 1]]], ids=str)
def test_content_that_is_not_an_entry_is_damage_even_with_the_right_checksum(
    journal, folder, value
):
    content = msgpack.packb(value)
    folder.write(f"{PATH}/000007+1", zlib.crc32(content).to_bytes(4, "big") + content)
    with pytest.raises(DamagedFile, match=r"000007\+1 is damaged"):
        list(journal.samples())


def test_compaction_of_a_damaged_journal_removes_nothing(journal, folder):
    journal.add(samples(5, 6))
    journal.add(samples(8))
    folder.write(f"{PATH}/000008+1", b"")
    with pytest.raises(DamagedFile):
        journal.compact()
    assert folder.names(PATH) == ["000005+2", "000008+1"]
