"""Bytes of samples that are not there yet, against folders and numbers worked out by hand."""

import dataclasses
import hashlib

import pytest

from seediff_jax.dataset.checksums import add_checksum, json_line, json_with_checksum
from seediff_jax.dataset.encoding import PARTS
from seediff_jax.dataset.formats.names import ATTENTION_PART, STRIPS_PART
from seediff_jax.driver.config import RunConfig
from seediff_jax.driver.plan import (
    CLASS_PIXEL_BYTES,
    METHOD_PIXEL_BYTES,
    PIXEL_BYTES,
    RECORD_BYTES,
    STRIP_BYTES,
    stored_sample_bytes,
    typical_sample_bytes,
)
from seediff_jax.files.folder import open_folder
from seediff_jax.masks.config import MaskConfig
from seediff_jax.prompts.prompt_plan import PromptPlan
from seediff_jax.prompts.prompt_record import PromptRecord

CONFIG = RunConfig(
    plan=PromptPlan(records=(PromptRecord("a dog", ("dog",)),)),
    class_names=("dog",),
    output="out",
    num_images=9,
    formats=("files", "voc", "webdataset"),
)
OWN = ("image/{}.png", "mask/{}.png", "overlay/{}.png")
VOC = ("voc/JPEGImages/{}.jpg", "voc/SegmentationClass/{}.png")


def test_every_part_has_a_typical_size():
    sizes = {*PIXEL_BYTES, *CLASS_PIXEL_BYTES, *METHOD_PIXEL_BYTES}
    assert sizes | {ATTENTION_PART, STRIPS_PART} == {*PARTS}


def test_typical_bytes_are_those_of_the_parts_of_all_formats():
    plain = dataclasses.replace(CONFIG, formats=("files",))
    assert typical_sample_bytes(plain, 100, 2) == pytest.approx(361 + RECORD_BYTES)
    kept = dataclasses.replace(CONFIG, formats=("voc", "webdataset"), soft_masks="png")
    # Two JPEGs and masks, and in WebDataset maps of two classes.
    expected = 2 * (70 + 1) + 2 * 150 + RECORD_BYTES
    assert typical_sample_bytes(kept, 100, 2) == pytest.approx(expected)
    # In WebDataset alone, the masks of two more methods and attention.
    masks = MaskConfig(method=("seediff", "cross_attention", "exponentiation"))
    kept = dataclasses.replace(kept, masks=masks, keep_attention=True)
    expected += 100 * 2 * 0.01 + 5000
    assert typical_sample_bytes(kept, 100, 2, 5000) == pytest.approx(expected)
    # The strips of two classes, whatever the size of the image.
    drawn = dataclasses.replace(plain, strips=True)
    expected = 361 + RECORD_BYTES + 2 * STRIP_BYTES
    assert typical_sample_bytes(drawn, 100, 2) == pytest.approx(expected)


def write(folder, names, count):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(count))


def finish(folder, name, indices, failed=()):
    """Finishes a shard whose files have 1000 bytes in all."""
    rows = [{"index": i, "sha256": {}} for i in indices]
    rows += [{"index": i, "failed": "so"} for i in failed]
    lines = b"".join(json_line(add_checksum(row)) for row in rows)
    files = {
        "webdataset/shard-00000.tar": {"bytes": 1000 - len(lines), "sha256": ""},
        "shards/00000.jsonl": {
            "bytes": len(lines),
            "sha256": hashlib.sha256(lines).hexdigest(),
        },
    }
    (folder / "shards").mkdir(exist_ok=True)
    (folder / "shards/00000.jsonl").write_bytes(lines)
    counts = {"samples": len(indices), "failed": len(failed), "empty": 0}
    (folder / f"shards/{name}").write_bytes(json_with_checksum({**counts, "files": files}))


@pytest.mark.parametrize("name", ["00000.json", "00000.open.json"])
def test_stored_samples_take_their_own_files_and_their_part_of_the_shards(tmp_path, name):
    folder = open_folder(tmp_path)
    assert stored_sample_bytes(CONFIG, folder) is None
    write(tmp_path, ["shards/closed.json", "shards/00000.journal/000000+4"], 9)
    assert stored_sample_bytes(CONFIG, folder) is None
    for index in (0, 1, 3):
        names = [each.format(f"{index:06d}") for each in OWN + VOC]
        write(tmp_path, names, 10 * (index + 1))
    finish(tmp_path, name, [0, 1, 3], failed=[2])
    # 1000 / 3 of the shard, and five files each of 10, 20 and 40 bytes.
    expected = 1000 / 3 + 5 * (10 + 20 + 40) / 3
    assert stored_sample_bytes(CONFIG, folder) == pytest.approx(expected)


def test_a_shard_of_failures_says_nothing_and_a_damaged_summary_is_named(tmp_path):
    finish(tmp_path, "00000.json", [], failed=[0])
    assert stored_sample_bytes(CONFIG, open_folder(tmp_path)) is None
    (tmp_path / "shards/00000.json").write_text("[]")
    with pytest.raises(ValueError, match=r"00000\.json is damaged .*--repair"):
        stored_sample_bytes(CONFIG, open_folder(tmp_path))
