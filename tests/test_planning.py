"""The plan of a run in words, against numbers worked out by hand."""

import dataclasses

from seediff_jax.planning import Measured, class_counts, describe_plan
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


def test_a_plan_tells_the_split_and_the_time_at_a_given_rate():
    # 900 missing images are 225 blocks; two hosts of 8 rows make 113 and 112 of them in 15 rounds.
    lines = describe_plan(CONFIG, [8, 8], 101, rate=0.5).splitlines()
    assert lines == [
        "1001 images, 101 of them there already, in out",
        "11 shards of 100; formats: files",
        "16 at a time x 4 on 2 host(s): 15 rounds of 64 images",
        "classes: cat 500, dog 1001",
        "about 2.0 minutes at 0.5 images a second on each of 16",  # 15 * 4 / 0.5
    ]


def test_a_plan_tells_what_was_measured():
    measured = Measured(seconds=8.0, sample_bytes=2.5 * 2**20, device_bytes=12 * 2**30)
    lines = describe_plan(CONFIG, [1], 1, measured=measured).splitlines()
    assert lines[-3:] == [
        "about 33.3 minutes at 0.5 images a second on each of 1",  # 250 rounds * 8 s
        "about 2.4 GiB on disk, 2.5 MiB a sample",  # 1000 * 2.5 MiB
        "12.0 GiB of memory on each device",
    ]


def test_many_classes_are_cut_short():
    names = tuple(f"thing{k:02d}" for k in range(20))
    plan = PromptPlan(records=tuple(PromptRecord(f"a {name}", (name,)) for name in names))
    config = dataclasses.replace(CONFIG, plan=plan, class_names=names, num_images=40)
    assert set(class_counts(config).values()) == {2}
    assert "thing11 2 and 8 more" in describe_plan(config, [1], 0, rate=1)
