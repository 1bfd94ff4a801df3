"""The published UNet calls on TPUs: the table, and what the fused kernel must save."""

import json

import pytest

from experiments.benchmarks.tpu_unet_table import JSON_FILE, render_calls

GB = 1e9


def figures(gigabytes, seconds, mib):
    return {"bytes": gigabytes * GB, "roofline_s": seconds, "temporaries": mib * 2**20}


def test_a_row_has_the_call_and_what_recording_adds():
    table = render_calls(
        {
            "results": {
                "v5e:1x1/2/auto/recorded": figures(20.5, 0.033, 300),
                "v5e:1x1/2/auto/plain": figures(20.0, 0.032, 250),
                "v5e:1x1/2/xla/recorded": {"refused": "RESOURCE_EXHAUSTED"},
                "v5e:1x1/2/xla/plain": figures(40, 0.1, 4000),
            }
        }
    ).splitlines()
    assert table[2] == "| v5e:1x1 | 2 | auto | 20.5 | 33.0 | 300.0 | 0.5 | 1.0 (+3.1 %) | 50 |"
    assert table[3].startswith("| v5e:1x1 | 2 | xla | does not fit |")
    assert len(table) == 4


@pytest.fixture(scope="module")
def results():
    return json.loads(JSON_FILE.read_text())["results"]


def test_kernels_are_in_the_programs_of_every_chip(results):
    """Self and cross-attention of five layers of 64 x 64 locations and of five of 32 x 32.

    One self-attention layer of each size is recorded: its rows take a kernel for each prompt.
    """
    for name, figures in results.items():
        row, attention, kind = name.rsplit("/", 2)
        if "refused" not in figures:
            expected = {"recorded": 22, "plain": 20}[kind] if attention == "auto" else 0
            assert figures["kernels"] == expected, name


def test_no_call_moves_more_than_without_the_kernel(results):
    pairs = {
        name: (figures["bytes"], results[other]["bytes"])
        for name, figures in results.items()
        if (other := name.replace("/auto/", "/xla/")) != name and other in results
    }
    assert len(pairs) >= 4
    assert all(bytes_moved < of_xla for bytes_moved, of_xla in pairs.values())


def test_recording_adds_at_most_three_percent(results):
    """By the compiler's roofline, adding to the sum included.

    The small on-chip memory of v4 has keys read again for every block of queries.
    """
    for name, figures in results.items():
        if name.endswith("/auto/recorded"):
            plain = results[name.replace("recorded", "plain")]
            most = 1.065 if name.startswith("v4") else 1.03
            assert figures["roofline_s"] < most * plain["roofline_s"], name
