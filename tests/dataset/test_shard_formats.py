"""Files of whole shards, read back by webdataset, Hugging Face datasets and grain."""

import gc
import tarfile

import datasets
import grain
import numpy as np
import pytest
import webdataset
from PIL import Image

from seediff_jax.dataset.encoding import encode
from seediff_jax.dataset.formats import FORMATS
from seediff_jax.dataset.formats.array_record import parse_record
from seediff_jax.dataset.strips import method_strip
from tests.helpers.format_runs import CLASS_NAMES, SAMPLES, write_run


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def shards(name, folder, **options):
    files = sorted((write_run(name, folder / "run", **options) / name).iterdir())
    assert len(files) == 3
    return [str(file) for file in files]


def decoded_jpeg(sample, folder):
    (folder / "image.jpg").write_bytes(encode(sample, ["image.jpg"]).files["image.jpg"])
    with Image.open(folder / "image.jpg") as image:
        return np.asarray(image)


def webdataset_samples(paths):
    got = list(webdataset.WebDataset(paths, shardshuffle=False).decode("pil"))
    gc.collect()  # webdataset leaves its files open
    return got


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_decodes_image_mask_and_record_by_itself(tmp_path):
    got = webdataset_samples(shards("webdataset", tmp_path))
    assert [int(sample["__key__"]) for sample in got] == sorted(SAMPLES)
    for sample in got:
        made = SAMPLES[int(sample["__key__"])]
        np.testing.assert_array_equal(np.asarray(sample["jpg"]), decoded_jpeg(made, tmp_path))
        # Decoding to RGB repeats the ids in three channels.
        np.testing.assert_array_equal(
            np.asarray(sample["mask.png"]), np.repeat(made.mask[..., None], 3, axis=2)
        )
        assert sample["json"] == made.record


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_decodes_soft_masks_and_seed_maps(tmp_path):
    got = webdataset_samples(shards("webdataset", tmp_path, soft="npz", seeds=True))
    assert len(got) == len(SAMPLES)
    for sample in got:
        made = SAMPLES[int(sample["__key__"])]
        np.testing.assert_array_equal(sample["soft.npz"]["soft_masks"], made.soft_masks)
        np.testing.assert_array_equal(sample["seeds.npz"]["seed_maps"], made.seed_maps)


def test_tar_members_have_no_date_and_no_owner_and_come_sample_by_sample(tmp_path):
    with tarfile.open(shards("webdataset", tmp_path, soft="png")[1]) as tar:
        members = tar.getmembers()
    endings = ("jpg", "mask.png", "soft.png", "json")
    assert [m.name for m in members] == [f"{k:06d}.{e}" for k in (3, 5) for e in endings]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {
        (0, 0, 0, "", "", 0o644)
    }


def test_hugging_face_datasets_streams_the_tar_files(tmp_path):
    paths = shards("webdataset", tmp_path, soft="png")
    got = datasets.load_dataset("webdataset", data_files=paths, split="train", streaming=True)
    seen = []
    for sample in got:
        made = SAMPLES[int(sample["__key__"])]
        np.testing.assert_array_equal(np.asarray(sample["jpg"]), decoded_jpeg(made, tmp_path))
        np.testing.assert_array_equal(np.asarray(sample["mask.png"]), made.mask)
        maps = np.asarray(sample["soft.png"]).reshape(made.soft_masks.shape) / 65535
        np.testing.assert_allclose(maps, made.soft_masks, rtol=0, atol=0.51 / 65535)  # half a step
        assert sample["json"] == made.record
        seen.append(made.index)
    assert seen == sorted(SAMPLES)


def test_hugging_face_datasets_loads_records_of_changing_types_with_the_json_feature(tmp_path):
    paths = shards("webdataset", tmp_path)  # "empty" is an empty list in some, has names in others
    features = datasets.Features(
        {
            "jpg": datasets.Image(),
            "mask.png": datasets.Image(),
            "json": datasets.Json(),
            "__key__": datasets.Value("string"),
            "__url__": datasets.Value("string"),
        }
    )
    got = datasets.load_dataset(
        "webdataset", data_files=paths, split="train", features=features, cache_dir=tmp_path
    )
    assert [sample["json"] for sample in got] == [SAMPLES[k].record for k in sorted(SAMPLES)]
    for sample in got:
        np.testing.assert_array_equal(
            np.asarray(sample["mask.png"]), SAMPLES[int(sample["__key__"])].mask
        )


@pytest.mark.parametrize("soft", [None, "npz", "png"])
def test_grain_reads_any_record_at_once(tmp_path, soft):
    more = soft is not None
    kept = dict.fromkeys(("seeds", "attention", "methods", "strips"), more)
    paths = shards("array_record", tmp_path, soft=soft, **kept)
    source = grain.sources.ArrayRecordDataSource(paths)
    dataset = grain.MapDataset.source(source).map(parse_record)
    indices = sorted(SAMPLES)
    assert len(dataset) == len(indices)
    for position in (7, 0, 3, 1, 6, 2, 5, 4):
        got, made = dataset[position], SAMPLES[indices[position]]
        assert set(got) == {"image", "mask", "record"} | (
            {"soft_masks", "seed_maps", "other_masks", "strips", *made.attention} if soft else set()
        )
        np.testing.assert_array_equal(got["image"], decoded_jpeg(made, tmp_path))
        np.testing.assert_array_equal(got["mask"], made.mask)
        assert got["record"] == made.record
        if soft:
            assert got["soft_masks"].dtype == got["seed_maps"].dtype == np.float32
            np.testing.assert_array_equal(got["seed_maps"], made.seed_maps)
            for name, maps in made.attention.items():
                np.testing.assert_array_equal(got[name], maps.astype(np.float16))
            np.testing.assert_array_equal(got["other_masks"], made.other_masks)
            strips = [method_strip(made.image, made.mask, each) for each in made.stages]
            drawn = np.concatenate([np.asarray(strip) for strip in strips])
            np.testing.assert_array_equal(got["strips"], drawn)
            # Half a step of 16 bits and the rounding of float32; npz is exact.
            step = 0 if soft == "npz" else 0.5 / 65535 + 1e-7
            np.testing.assert_allclose(got["soft_masks"], made.soft_masks, rtol=0, atol=step)


def test_an_array_record_file_that_cannot_be_written_is_named(tmp_path):
    path = tmp_path / "array_record/data-00002.array_record"
    path.mkdir(parents=True)
    with pytest.raises(OSError, match=r"data-00002\.array_record cannot be written: open"):
        FORMATS["array_record"](CLASS_NAMES).write_shard(2, iter(()), tmp_path)
