"""Filters: which samples are kept, and the new dataset that they become."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from seediff_jax.dataset.encoding import PARTS
from seediff_jax.dataset.resume import require_resumable
from seediff_jax.dataset.settings_file import read_settings
from seediff_jax.dataset.shards import Dataset
from seediff_jax.dataset.verify import verify
from seediff_jax.errors import UserError
from seediff_jax.files.folder import open_folder
from seediff_jax.main import main
from seediff_jax.review.criteria import select
from seediff_jax.review.filter import filter_dataset
from seediff_jax.review.finished import ClassFacts
from seediff_jax.review.settings import Criteria, FilterOutput
from tests.helpers import stored_runs
from tests.helpers.format_readers import READERS
from tests.helpers.format_runs import SAMPLES, tree

# grain and pycocotools, which read the formats back.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
]
IN_RUN = [index for index in range(stored_runs.NUM_IMAGES) if index != stored_runs.BAD]


def random_facts(seed):
    """Facts of 60 samples with one to three of four classes.

    Scores recur, some areas are 0, and some classes have no presence.
    """
    rng = np.random.default_rng(seed)
    samples = [[] for _ in range(60)]
    for sample in samples:
        for class_id in rng.permutation(4)[: rng.integers(1, 4)] + 1:
            area = 0.0 if rng.random() < 0.1 else float(rng.random())
            presence = np.nan if rng.random() < 0.3 else float(rng.random())
            sample.append((int(class_id), float(rng.integers(0, 20) / 20), area, presence))
    places = np.array([k for k, sample in enumerate(samples) for _ in sample])
    columns = [np.array(c) for c in zip(*[e for sample in samples for e in sample], strict=True)]
    return samples, ClassFacts(np.arange(60) * 3, places, *columns)


def select_slowly(samples, criteria):
    """The same selection in plain Python, one sample at a time."""

    def fits(entry):
        _, score, area, presence = entry
        return (
            (criteria.min_score is None or score >= criteria.min_score)
            and (criteria.min_area is None or area >= criteria.min_area)
            and (criteria.max_area is None or area <= criteria.max_area)
            and not (criteria.drop_empty and area == 0)
            and (
                criteria.min_presence is None
                or np.isnan(presence)
                or presence >= criteria.min_presence
            )
        )

    def reaches(score, scores):
        """Whether fewer than the wanted number are better."""
        return sum(other > score for other in scores) < math.ceil(criteria.quantile * len(scores))

    good = [k for k, sample in enumerate(samples) if all(map(fits, sample))]
    if criteria.quantile is None:
        return good
    if not criteria.per_class:
        worst = {k: min(score for _, score, *_ in samples[k]) for k in good}
        return [k for k in good if reaches(worst[k], worst.values())]
    scores = {c: [s for k in good for i, s, *_ in samples[k] if i == c] for c in range(1, 5)}
    return [k for k in good if all(reaches(s, scores[c]) for c, s, *_ in samples[k])]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_score": 0.5},
        {"min_area": 0.2, "max_area": 0.8},
        {"min_presence": 0.4},
        {"min_presence": 0.3, "quantile": 0.5},
        {"max_area": 0.5, "drop_empty": True},
        {"quantile": 0.75},
        {"quantile": 0.3, "min_score": 0.2},
        {"quantile": 0.5, "per_class": True},
        {"quantile": 0.9, "per_class": True, "drop_empty": True},
        {"quantile": 0.0},
        {"quantile": 1.0},
    ],
)
def test_the_samples_that_are_kept_are_those_of_a_plain_loop(options):
    criteria = Criteria(**options)
    for seed in range(5):
        samples, facts = random_facts(seed)
        assert np.flatnonzero(select(facts, criteria)).tolist() == select_slowly(samples, criteria)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "all"
    stored_runs.run(place)
    return place


@pytest.fixture(scope="module")
def files_only(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "files"
    stored_runs.run(place, ("files",))
    return place


@pytest.fixture(scope="module")
def coco_only(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "coco"
    stored_runs.run(place, ("coco",))
    return place


def lines_of(place):
    return [json.loads(line) for line in (place / "manifest.jsonl").read_text().splitlines()]


def filtered(source, output, formats=None, **criteria):
    target = FilterOutput(output=str(output), formats=formats)
    return filter_dataset(open_folder(source), Criteria(**criteria), target)


def test_a_filtered_dataset_is_sound_and_has_the_same_parts_and_the_source_is_not_touched(
    source, tmp_path
):
    before = tree(source), {path: path.stat().st_mtime_ns for path in source.rglob("*")}
    told = filtered(source, tmp_path / "new", min_score=0.3)
    assert (tree(source), {p: p.stat().st_mtime_ns for p in source.rglob("*")}) == before
    old = {record["index"]: record for record in lines_of(source)}
    expected = [k for k in IN_RUN if min(old[k]["scores"]) >= 0.3]
    assert 0 < len(expected) < len(IN_RUN)
    assert told[-2] == f"all: {len(expected)} of {len(IN_RUN)} kept"
    assert verify(open_folder(tmp_path / "new")) == []
    new = lines_of(tmp_path / "new")
    assert [record["index"] for record in new] == list(range(len(expected)))
    assert [record["source_index"] for record in new] == expected
    moved = {"index", "source_index", *(part.split(".")[0] for part in PARTS)}
    for record, index in zip(new, expected, strict=True):
        kept = record.keys() - moved - {"crc32"}
        assert kept == old[index].keys() - moved - {"crc32"}
        assert all(record[name] == old[index][name] for name in kept)  # also hashes of all parts
    for name, reader in READERS.items():
        samples = reader(tmp_path / "new")
        assert len(samples) == len(expected), name
        for k, index in enumerate(expected):
            assert np.array_equal(samples[k]["mask"], SAMPLES[index].mask), (name, index)


def test_counts_per_class_are_told_before_and_after(source):
    told = filter_dataset(open_folder(source), Criteria(min_score=0.3), FilterOutput())
    records = lines_of(source)
    for name, line in zip(("cat", "dog", "zebra"), told, strict=False):
        own = [record for record in records if name in record["classes"]]
        kept = [record for record in own if min(record["scores"]) >= 0.3]
        assert line == f"{name}: {len(kept)} of {len(own)} kept"
    assert len(told) == 4


def test_samples_are_kept_by_their_least_present_class(source, tmp_path):
    filtered(source, tmp_path / "kept.txt", min_presence=0.5)
    expected = [
        record["index"]
        for record in lines_of(source)
        if not any(value is not None and value < 0.5 for value in record["presence"])
    ]
    assert 0 < len(expected) < len(IN_RUN)
    assert [int(line) for line in (tmp_path / "kept.txt").read_text().split()] == expected
    assert any(None in record["presence"] for record in lines_of(source))


def test_a_dataset_without_presence_is_not_filtered_by_it(tmp_path, monkeypatch, capsys):
    settings, encoded = stored_runs.settings, stored_runs.encoded

    def without(index, formats):
        made = encoded(index, formats)
        made.record.pop("presence", None)
        return made

    def all_one(index, formats):
        made = encoded(index, formats)
        made.record["presence"] = [1.0 for _ in made.record.get("class_ids", ())]
        return made

    monkeypatch.setattr(stored_runs, "encoded", without)
    stored_runs.run(tmp_path / "old", ("files",))
    cross = lambda *formats: settings(*formats) | {"mask_method": "cross_attention"}  # noqa: E731
    monkeypatch.setattr(stored_runs, "encoded", all_one)
    monkeypatch.setattr(stored_runs, "settings", cross)
    stored_runs.run(tmp_path / "cross", ("files",))
    for name in ("old", "cross"):
        assert main(["seediff", "filter", str(tmp_path / name), "--min_presence=0.8"]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and f"{name} has no presence of its classes to judge" in error
        assert error.startswith("seediff filter: --min_presence=0.8: ")
        assert main(["seediff", "filter", str(tmp_path / name), "--min_score=0.1"]) == 0
        capsys.readouterr()
    drawn = lambda *formats: cross(*formats) | {"presence_draws": 4}  # noqa: E731
    monkeypatch.setattr(stored_runs, "settings", drawn)
    stored_runs.run(tmp_path / "drawn", ("files",))
    assert main(["seediff", "filter", str(tmp_path / "drawn"), "--min_presence=0.8"]) == 0


def test_another_format_is_made_of_the_same_pixels(files_only, tmp_path):
    filtered(files_only, tmp_path / "new", ("voc", "coco", "webdataset"), drop_empty=True)
    assert verify(open_folder(tmp_path / "new")) == []
    records = lines_of(tmp_path / "new")
    assert 0 < len(records) < len(IN_RUN)
    for name in ("voc", "coco", "webdataset"):
        samples = READERS[name](tmp_path / "new")
        for record in records:
            index = record["source_index"]
            sample = samples[record["index"]]
            assert np.array_equal(sample["mask"], SAMPLES[index].mask)
            # JPEG of quality 95 without subsampling, of smooth waves
            difference = sample["image"].astype(int) - SAMPLES[index].image
            assert np.abs(difference).max() < 16
    assert read_settings(open_folder(tmp_path / "new"))["soft_masks"] == "npz"


def test_soft_masks_that_the_source_has_no_files_of_are_not_promised(coco_only, tmp_path):
    filtered(coco_only, tmp_path / "new", ("files",))
    assert verify(open_folder(tmp_path / "new")) == []
    settings = read_settings(open_folder(tmp_path / "new"))
    assert (settings["soft_masks"], settings["seed_maps"]) == (None, False)
    for record in lines_of(tmp_path / "new"):
        with Image.open(tmp_path / "new" / record["mask"]) as mask:
            assert np.array_equal(np.asarray(mask), SAMPLES[record["source_index"]].mask)
        with (
            Image.open(tmp_path / "new" / record["image"]) as new,
            Image.open(coco_only / f"coco/images/{record['source_index']:06d}.jpg") as old,
        ):
            assert np.array_equal(np.asarray(new), np.asarray(old))


def test_indices_can_be_listed_and_a_list_that_is_there_is_not_replaced(source, tmp_path):
    path = tmp_path / "kept.txt"
    filtered(source, path, min_score=0.3)
    expected = [r["index"] for r in lines_of(source) if min(r["scores"]) >= 0.3]
    assert [int(line) for line in path.read_text().split()] == expected
    filtered(source, path, min_score=0.3)
    with pytest.raises(UserError, match="exists already; give another name"):
        filtered(source, path, min_score=0.9)
    assert [int(line) for line in path.read_text().split()] == expected


def test_a_list_of_indices_goes_to_a_bucket_and_replaces_no_other_file(source, tmp_path):
    bucket = open_folder(f"memory://{tmp_path.name}")
    filtered(source, f"memory://{tmp_path.name}/kept.txt", drop_empty=True)
    expected = [r["index"] for r in lines_of(source) if min(r["area_fractions"]) > 0]
    assert [int(line) for line in bucket.read("kept.txt").split()] == expected
    (tmp_path / "photo.txt").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError, match="exists already"):
        filtered(source, tmp_path / "photo.txt", drop_empty=True)
    with pytest.raises(UserError, match="gs://kept.txt names no folder"):
        filtered(source, "gs://kept.txt", drop_empty=True)
    assert (tmp_path / "photo.txt").read_bytes() == b"\xff\xd8\xff"


def test_a_filtered_dataset_can_be_filtered_again_and_remembers_both(source, tmp_path):
    filtered(source, tmp_path / "one", min_score=0.2)
    filtered(tmp_path / "one", tmp_path / "two", ("files",), drop_empty=True)
    records = lines_of(tmp_path / "two")
    old = {record["index"]: record for record in lines_of(source)}
    assert all(old[r["source_index"]]["prompt"] == r["prompt"] for r in records)
    first, second = read_settings(open_folder(tmp_path / "two"))["filters"]
    assert (first["min_score"], first["drop_empty"]) == (0.2, False)
    assert (second["min_score"], second["drop_empty"]) == (None, True)
    assert [first["source"], second["source"]] == [str(source), str(tmp_path / "one")]


def test_a_copy_that_was_stopped_goes_on_to_the_same_files(source, tmp_path, monkeypatch):
    filtered(source, tmp_path / "whole", min_score=0.1)
    write, calls = Dataset.write, []

    def stop_at_second(self, samples):
        calls.append(samples)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write(self, samples)

    monkeypatch.setattr(Dataset, "write", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        filtered(source, tmp_path / "parts", min_score=0.1)
    monkeypatch.undo()
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts/image").iterdir()}
    assert made
    filtered(source, tmp_path / "parts", min_score=0.1)
    assert tree(tmp_path / "parts") == tree(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_what_cannot_be_filtered_is_refused_and_nothing_is_written(source, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/photo.txt").write_text("mine")
    stored_runs.run(tmp_path / "half", ("files",), stop_at=3)
    before = tree(tmp_path)
    refusals = {
        (tmp_path / "nothing", tmp_path / "new"): "is not a seediff dataset: it does not exist",
        (tmp_path / "other", tmp_path / "new"): "is not a seediff dataset: it has no settings",
        (tmp_path / "half", tmp_path / "new"): "is not complete; run its command to the end",
        (source, tmp_path / "other"): "is not empty and is not a seediff dataset",
        (source, source): "is within",
        (source, source / "deeper"): "is within",
        (source, tmp_path / "half"): "was made with other settings|has samples",
    }
    for (place, output), message in refusals.items():
        with pytest.raises(UserError, match=message):
            filtered(place, output, drop_empty=True)
    with pytest.raises(UserError, match="all: 0 of 7 kept; nothing to write"):
        filtered(source, tmp_path / "new", quantile=0.0)
    assert tree(tmp_path) == before


def test_damage_of_the_source_is_told_and_not_copied(tmp_path):
    stored_runs.run(tmp_path / "run", ("files",))
    path = tmp_path / "run/mask/000005.png"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="sample 5 of .* is damaged; `seediff verify"):
        filtered(tmp_path / "run", tmp_path / "new")


def test_no_run_adds_samples_to_a_filtered_copy(files_only, tmp_path):
    filtered(files_only, tmp_path / "new", drop_empty=True)
    with pytest.raises(UserError, match="is a copy of a dataset"):
        require_resumable(open_folder(tmp_path / "new"), stored_runs.settings(("files",)))


def test_the_command_prints_the_counts_and_verify_takes_the_new_folder(
    files_only, tmp_path, capsys
):
    new = tmp_path / "new"
    assert main(["seediff", "filter", str(files_only), "--drop_empty", f"--output={new}"]) == 0
    *counts, last = capsys.readouterr().out.splitlines()
    assert counts[-1].startswith("all: ") and last.startswith(f"{new} has the ")
    assert main(["seediff", "verify", str(new)]) == 0
    assert "all is as it was written" in capsys.readouterr().out
    (new / "image/000001.png").unlink()
    assert main(["seediff", "verify", str(new)]) == 4
    assert "image/000001.png: missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--per_class"], "--per_class=true needs --quantile=SHARE"),
        (["--min_area=0.5", "--max_area=0.2"], "no class can meet both"),
        (["--min_score=2"], "--min_score=2.0 must be a finite number in 0..1"),
        (["--format=coco"], "--format=coco needs --output=FOLDER"),
        (["--format=coco", "--output=x.txt"], "--format=coco needs --output=FOLDER"),
        (["again"], "unknown argument 'again'"),
    ],
)
def test_bad_options_of_the_command_are_one_line(source, capsys, options, message):
    assert main(["seediff", "filter", str(source), *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("seediff filter: ") and error.count("\n") == 1 and message in error


def test_a_command_without_a_folder_asks_for_it(capsys):
    assert main(["seediff", "filter", "--drop_empty"]) == 2
    assert "give it as the first argument" in capsys.readouterr().err
