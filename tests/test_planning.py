"""The plan of a run in words, against numbers worked out by hand."""

import dataclasses

from seediff_jax.planning import Needs, class_counts, describe_plan
from seediff_jax.prompt_plan import PromptPlan
from seediff_jax.prompts import PromptRecord
from seediff_jax.run_config import RunConfig

RECORDS = (PromptRecord("a dog", ("dog",)), PromptRecord("a dog and a cat", ("dog", "cat")))
CONFIG = RunConfig(
    plan=PromptPlan(records=RECORDS),
    class_names=("cat", "cow", "dog"),
    output="out",
    num_images=1001,
    batch_size=4,
    shard_size=100,
)


NEEDS = Needs(
    rate=0.5, sample_bytes=2.5 * 2**20, disk_source="as in a trial round", device_bytes=12 * 2**30
)


def test_a_plan_tells_the_split_the_time_the_disk_and_the_memory():
    # 900 missing images are 225 blocks; two hosts of 8 rows make 113 and 112 of them in 15 rounds.
    lines = describe_plan(CONFIG, [8, 8], 101, NEEDS).splitlines()
    assert lines == [
        "1001 images, 101 of them there already, in out",
        "11 shards of 100; formats: files",
        "16 at a time x 4 on 2 hosts: 15 rounds of 64 images",
        "classes: cat 500, dog 1001",
        "about 2.0 minutes at 0.5 images a second on each of 16",  # 15 * 4 / 0.5
        "about 2.2 GiB on disk, 2.5 MiB a sample, as in a trial round",  # 900 * 2.5 MiB
        "about 12.0 GiB of memory on each device, by the compiled programs",
    ]


def test_one_of_each_is_no_plural():
    config = dataclasses.replace(CONFIG, num_images=1, batch_size=1)
    lines = describe_plan(config, [1], 0, NEEDS._replace(rate=1.0)).splitlines()
    assert lines[0] == "1 image, 0 of them there already, in out"
    assert lines[1] == "1 shard of 100; formats: files"
    assert lines[2] == "1 at a time x 1 on 1 host: 1 round of 1 image"
    assert lines[4] == "about 1 second at 1 images a second on each of 1"


def test_a_batch_that_does_not_fit_is_said():
    lines = describe_plan(CONFIG, [1], 1, NEEDS._replace(device_bytes=None)).splitlines()
    assert lines[-1].startswith("more memory than each device has; a smaller --batch_size")


def test_many_classes_are_cut_short():
    names = tuple(f"thing{k:02d}" for k in range(20))
    plan = PromptPlan(records=tuple(PromptRecord(f"a {name}", (name,)) for name in names))
    config = dataclasses.replace(CONFIG, plan=plan, class_names=names, num_images=40)
    assert set(class_counts(config).values()) == {2}
    assert "thing11 2 and 8 more" in describe_plan(config, [1], 0, NEEDS)
