"""The plan of a run in words, against numbers worked out by hand."""

import dataclasses
import itertools

import pytest

from seediff_jax.driver.config import RunConfig
from seediff_jax.driver.plan import Estimate, class_counts, describe_plan
from seediff_jax.prompts.prompt_plan import PromptPlan
from seediff_jax.prompts.prompt_record import PromptRecord

RECORDS = (PromptRecord("a dog", ("dog",)), PromptRecord("a dog and a cat", ("dog", "cat")))
CONFIG = RunConfig(
    plan=PromptPlan(records=RECORDS),
    class_names=("cat", "cow", "dog"),
    output="out",
    num_images=1001,
    batch_size=4,
    shard_size=100,
)


ESTIMATE = Estimate(
    rate=0.5,
    sample_bytes=2.5 * 2**20,
    disk_source="measured in a trial round",
    device_bytes=12 * 2**30,
)


def test_a_plan_tells_the_split_the_time_the_disk_and_the_memory():
    # 900 missing images are 225 blocks; two hosts of 8 rows make 113 and 112 of them in 15 rounds.
    lines = describe_plan(CONFIG, [8, 8], 101, ESTIMATE).splitlines()
    assert lines == [
        "1001 images, of which 101 exist, in out",
        "11 shards of 100; formats: files",
        "16 at a time x 4 on 2 hosts: 15 rounds of 64 images",
        "classes: cat 500, dog 1001",
        "about 2.0 minutes at 0.5 images per second on each of 16",  # 15 * 4 / 0.5
        "about 2.2 GiB on disk, 2.5 MiB per sample, measured in a trial round",  # 900 * 2.5 MiB
        "about 12.0 GiB of memory on each device, according to its programs",
    ]


@pytest.mark.parametrize("num_images", [1, 2, 3, 7, 8, 11, 12, 25])
@pytest.mark.parametrize("options", [{}, {"shuffle_seed": 5}, {"images_per_prompt": 3}])
def test_classes_are_counted_as_by_going_through_all_images(num_images, options):
    names = ("dog", "cat", "cow")
    records = [PromptRecord(f"a {a} and a {b}", (a, b)) for a, b in itertools.pairwise(names)]
    records += [*RECORDS[:1], *records[:1]]
    plan = PromptPlan(records=tuple(records), **options)
    config = dataclasses.replace(CONFIG, plan=plan, class_names=names, num_images=num_images)
    shown = [name for index in range(num_images) for name in config.record(index).classes]
    assert class_counts(config) == {name: shown.count(name) for name in names}


@pytest.mark.parametrize("balance", [False, True])
def test_a_plan_of_billions_of_images_looks_at_no_more_than_some_thousand(monkeypatch, balance):
    seen = []

    def place_of(plan, turn):
        seen.append(turn)
        return turn % 2

    monkeypatch.setattr(PromptPlan, "place_of", place_of)
    plan = PromptPlan(records=RECORDS, balance_classes=balance)
    config = dataclasses.replace(CONFIG, plan=plan, num_images=2**31 - 1, shard_size=10**6)
    lines = describe_plan(config, [8, 8], 0, ESTIMATE).splitlines()
    assert len(seen) <= 20_000
    cats = 2**30 if balance else 2**30 - 1
    assert lines[3] == f"classes: cat {cats}, dog {2**31 - 1}"
    assert lines[2].startswith("16 at a time x 4 on 2 hosts: 33554432 rounds")


def test_one_of_each_is_no_plural():
    config = dataclasses.replace(CONFIG, num_images=1, batch_size=1)
    lines = describe_plan(config, [1], 0, ESTIMATE._replace(rate=1.0)).splitlines()
    assert lines[0] == "1 image, of which 0 exist, in out"
    assert lines[1] == "1 shard of 100; formats: files"
    assert lines[2] == "1 at a time x 1 on 1 host: 1 round of 1 image"
    assert lines[4] == "about 1 second at 1 images per second on each of 1"


def test_a_batch_that_does_not_fit_is_said():
    lines = describe_plan(CONFIG, [1], 1, ESTIMATE._replace(device_bytes=None)).splitlines()
    assert lines[-1].startswith("needs more memory than a device has; use a smaller")


def test_many_classes_are_cut_short():
    names = tuple(f"thing{k:02d}" for k in range(20))
    plan = PromptPlan(records=tuple(PromptRecord(f"a {name}", (name,)) for name in names))
    config = dataclasses.replace(CONFIG, plan=plan, class_names=names, num_images=40)
    assert set(class_counts(config).values()) == {2}
    assert "thing11 2 and 8 more" in describe_plan(config, [1], 0, ESTIMATE)
