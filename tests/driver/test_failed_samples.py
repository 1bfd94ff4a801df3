"""Samples that cannot be made stop no run; they are tried twice and told."""

import json

import pytest

from seediff_jax.driver import sample_maker
from seediff_jax.driver.cli import SOME_FAILED
from seediff_jax.driver.sample_maker import PairMaker
from seediff_jax.main import main
from seediff_jax.pipeline import programs
from tests.helpers.small_runs import command, rows, tree


def test_samples_that_are_not_finite_are_tried_twice_and_told_at_the_end(
    inputs, made, tmp_path, monkeypatch, capsys
):
    fetch, fetched = programs.PairPrograms.fetch, []

    def poisoned(programs, results):
        rows = fetch(programs, results)
        fetched.append(rows)
        if len(fetched) in (1, 2):  # the eight devices make all blocks at once, then one again
            rows.is_finite["latents"][1] = False
        return rows

    monkeypatch.setattr(programs.PairPrograms, "fetch", poisoned)
    folder = tmp_path / "out"
    assert main(command(inputs, folder)) == SOME_FAILED
    assert "1 failed twice" in capsys.readouterr().out
    failed = [json.loads(line) for line in (folder / "failed.jsonl").read_text().splitlines()]
    assert [row["index"] for row in failed] == [1]
    assert failed[0]["failed"] == "latents are not finite" and failed[0]["prompt"] == "a cow"
    assert rows(folder) == [row for row in rows(made) if row["index"] != 1]


@pytest.mark.parametrize("stage", ["make_record", "encode"])
def test_a_sample_that_cannot_be_recorded_or_encoded_stops_no_run(
    inputs, made, tmp_path, monkeypatch, capsys, stage
):
    work, calls = getattr(sample_maker, stage), []

    def failing_for_1(what, *arguments, **options):
        if getattr(what, "index", what) == 1:
            calls.append(stage)
            raise OverflowError("too much")
        return work(what, *arguments, **options)

    monkeypatch.setattr(sample_maker, stage, failing_for_1)
    folder = tmp_path / "out"
    assert main(command(inputs, folder)) == SOME_FAILED
    assert "1 failed twice" in capsys.readouterr().out and len(calls) == 2
    (failed,) = (folder / "failed.jsonl").read_text().splitlines()
    assert '"index": 1, "failed": "OverflowError: too much"' in failed
    assert rows(folder) == [row for row in rows(made) if row["index"] != 1]


def test_a_picture_for_people_that_cannot_be_drawn_stops_no_run(
    inputs, made, tmp_path, monkeypatch
):
    monkeypatch.setattr(sample_maker, "method_strip", None)
    assert main(command(inputs, tmp_path / "out")) == 0
    expected = tree(made)
    del expected["strip.png"]
    assert tree(tmp_path / "out") == expected


def test_a_sample_that_failed_once_is_made_by_the_second_try(inputs, made, tmp_path, monkeypatch):
    fetch, fetched = programs.PairPrograms.fetch, []

    def poisoned(programs, results):
        rows = fetch(programs, results)
        fetched.append(rows)
        if len(fetched) == 1:
            rows.is_finite["images"][0] = False
        return rows

    monkeypatch.setattr(programs.PairPrograms, "fetch", poisoned)
    assert main(command(inputs, tmp_path / "out")) == 0
    assert tree(tmp_path / "out") == tree(made)


def test_a_complete_run_with_a_failed_sample_says_so_every_time(run, tmp_path, monkeypatch, capsys):
    fetch = PairMaker.fetch

    def poisoned(maker, made):
        blocks = fetch(maker, made)
        for block in blocks:
            block.rows.is_finite["images"] = block.inputs.indices != 5
        return blocks

    monkeypatch.setattr(PairMaker, "fetch", poisoned)
    argv = [word.replace("=24", "=8") for word in run(tmp_path / "out")]
    assert main(argv) == SOME_FAILED
    assert "7 images with masks" in capsys.readouterr().out
    assert main(argv) == SOME_FAILED
    assert "already, but for 1 that failed; nothing to do" in capsys.readouterr().out
