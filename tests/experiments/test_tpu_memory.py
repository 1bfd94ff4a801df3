"""The published memory of TPUs: the table, and the batch sizes that follow from it."""

import json
from pathlib import Path

import pytest

from experiments.benchmarks.tpu_memory_table import picked_batch, render, total_bytes
from experiments.benchmarks.tpu_topologies import TOPOLOGIES, collectives_in, refused_gib
from seediff_jax.pipeline.batch_size import SD1_BATCHES

DOCS = Path(__file__).parents[2] / "docs"
GIB = 2**30


@pytest.fixture(scope="module")
def content():
    return json.loads((DOCS / "tpu_memory.json").read_text())


def test_the_page_follows_from_the_measured_numbers(content):
    calls = json.loads((DOCS / "tpu_unet.json").read_text())
    assert (DOCS / "tpu_memory.md").read_text() == render(content, calls)
    assert content["available_gib"].keys() == TOPOLOGIES.keys()


def test_automatic_batch_sizes_of_stable_diffusion_1_were_measured(content):
    kinds = {one["topology"]: one["kind"] for one in content["results"].values()}
    chips = {one["topology"]: one["chips"] for one in content["results"].values()}
    v5e = {"v5e:1x1": 1, "v5e:2x2": 4, "v5e:16x16": 256}
    assert chips == v5e | {"v6e:1x1": 1, "v5p:2x2x1": 4, "v4:2x2x1": 4}
    for name, kind in kinds.items():
        assert picked_batch(content, name) == SD1_BATCHES[kind]
    assert set(kinds.values()) == set(SD1_BATCHES)


def test_the_automatic_batch_size_of_a_v5e_chip_is_the_largest_that_fits(content):
    batch = SD1_BATCHES["TPU v5 lite"]
    twice = total_bytes(content["results"][f"v5e:1x1/{2 * batch}/quick/auto"])
    assert twice is None or twice > 15.75 * GIB


def test_chips_exchange_no_data_and_do_the_same_work(content):
    work = {}
    for one in content["results"].values():
        for name in ("sample", "make_masks"):
            if "flops" in (part := one.get(name, {})):
                assert part["collectives"] == []
                key = (one["kind"], one["batch"], one["effort"], one["attention"], name)
                work.setdefault(key, {})[one["chips"]] = part["flops"]
    assert {1, 4, 256} in [set(flops) for flops in work.values()]
    for flops in work.values():
        # The compiler fuses a little differently for one chip, and may count an operation twice.
        assert min(flops.values()) > 0.99 * max(flops.values())


def test_collectives_are_found_in_the_text_of_a_program():
    text = """
  %all-reduce = f32[4]{0} add(%a, %b)
  %x = f32[4]{0} all-gather-start(%p), replica_groups={{0,1}}
  ROOT %y = (f32[4]{0}) collective-permute(%x), metadata={op_name="all-to-all(x)"}
"""
    assert collectives_in(text) == ["all-gather", "collective-permute"]


def test_needed_and_available_memory_are_read_from_a_refusal():
    message = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (20.42G) exceeds available HBM (15.75G)."
    )
    assert refused_gib(message) == (20.42, 15.75)
    assert refused_gib("INTERNAL: a bug") is None
