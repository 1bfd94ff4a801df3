"""What a finished dataset of unknown origin holds is used, or refused in one line."""

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest

from seediff_jax.dataset.encoding import encode_mask
from seediff_jax.dataset.formats.names import ATTENTION_PART
from seediff_jax.dataset.png import encode_png
from seediff_jax.errors import UserError
from seediff_jax.files.folder import open_folder
from seediff_jax.main import main
from seediff_jax.review.finished import open_finished
from tests.helpers import stored_runs

IMAGE = encode_png(np.zeros((4, 4, 3), np.uint8))
MASK = encode_mask(np.zeros((4, 4), np.uint8))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "set"
    stored_runs.run(folder, ("files",))
    return open_finished(open_folder(folder))


def sample(**files):
    """A record with the right hashes, and where its files are read."""
    files = {name.replace("_", "."): content for name, content in files.items()}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return {"index": 7, "sha256": hashes, "class_ids": [1, 2]}, [lambda record: files]


def png_header(side):
    """A PNG that says that it is large, and is not."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, b"IDAT")
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def npz(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


@pytest.mark.parametrize(
    ("image", "mask", "reason"),
    [
        (b"no image", MASK, "UnidentifiedImageError"),
        (png_header(60_000), MASK, "DecompressionBombError"),
        (IMAGE, b"", "UnidentifiedImageError"),
        (IMAGE, IMAGE, r"its mask is uint8 \[4, 4, 3\]"),
        (IMAGE, encode_mask(np.zeros((2, 8), np.uint8)), r"its mask is uint8 \[2, 8\]"),
    ],
    ids=["text", "bomb", "empty mask", "colours", "size"],
)
def test_pictures_that_are_none_are_named_with_their_sample(finished, image, mask, reason):
    with pytest.raises(UserError, match=f"sample 7 of .*set cannot be used: .*{reason}"):
        finished.read_pixels(*sample(image_png=image, mask_png=mask))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no zip",
        npz(cross_attention=np.array([{}], object)),
        npz(cross_attention=np.zeros((1, 4, 3)), self_attention_2=np.zeros((4, 4))),
        npz(cross_attention=np.zeros((1, 4, 2)), self_attention_2=np.zeros((4, 5))),
        npz(cross_attention=np.zeros((1, 4, 2)), self_attention_0=np.zeros((0, 0))),
        npz(cross_attention=np.zeros((1, 4, 2)), self_attention_2=np.full((4, 4), "x")),
        npz(cross_attention=np.zeros((1, 1, 4, 2)), self_attention_2=np.zeros((1, 4, 4))),
    ],
    ids=["empty", "text", "objects", "classes", "shape", "nothing", "words", "batch"],
)
def test_attention_that_is_none_is_named_with_its_sample(finished, content):
    record, _ = sample()
    record["sha256"] = {ATTENTION_PART: hashlib.sha256(content).hexdigest()}
    with pytest.raises(UserError, match="sample 7 of .*set cannot be used: "):
        finished.read_attention(record, [lambda record: {ATTENTION_PART: content}])


@pytest.mark.parametrize(
    "odd",
    [
        {"class_ids": [0]},
        {"class_ids": [255]},
        {"class_ids": [1.0]},
        {"scores": [10**18]},
        {"scores": None},
        {"seed_counts": 5},
        {"seed_counts": [1, 2, 3, 4, 5, 6]},
        {"presence": [2]},
        {"presence": ["high"]},
        {"presence": [0.5, 0.5]},
        {"presence": 0.5},
    ],
    ids=lambda odd: str(odd).strip("{}"),
)
def test_facts_of_another_kind_are_one_line(tmp_path, monkeypatch, capsys, odd):
    encoded = stored_runs.encoded

    def altered(index, formats):
        made = encoded(index, formats)
        if index == 2:
            facts = {"class_ids": [1], "scores": [0.5], "area_fractions": [0.1]}
            facts |= {"presence": [0.5], "seed_counts": [3]}
            made.record.update(facts | odd)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(stored_runs, "encoded", altered)
        patch.setattr("seediff_jax.dataset.complete._draw_sheet", lambda *_: None)
        stored_runs.run(tmp_path / "set", ("files",))
    assert main(["seediff", "report", str(tmp_path / "set")]) == 2
    line = capsys.readouterr().err
    assert line.startswith("seediff report: ") and line.count("\n") == 1 and "sample 2 of" in line
