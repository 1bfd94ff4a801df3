"""Graphics, scenes and captions of the embedded model "stickers", on drawings made here."""

import dataclasses
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import resvg_py
from PIL import Image

from experiments.stickers import fetch, recipe, sprites
from experiments.stickers.scenes import (
    BACKGROUNDS,
    TrainingRenderer,
    UnseenRenderer,
    caption,
    read_sprites,
    render_scene,
)
from experiments.stickers.sprites import CLASSES, HELD_OUT_SETS, SETS, TRAINING_SETS
from experiments.training.networks import MAX_TOKENS
from experiments.training.vocabulary import END, write_tokenizer
from seediff_jax.errors import UserError
from seediff_jax.prompts.class_lists import VOC_CLASSES
from seediff_jax.prompts.tokenizer import class_token_mask, load_tokenizer

ROOT = Path(__file__).parents[2]
_HELD_OUT_COLOUR = (255, 0, 255)


def _square(colour) -> np.ndarray:
    return np.full((40, 30, 4), (*colour, 255), np.uint8)


@pytest.fixture(scope="module")
def sprites_file(tmp_path_factory):
    """One grey drawing per class and training set; the held-out ones are magenta."""
    path = tmp_path_factory.mktemp("stickers") / "sprites.npz"
    colours = {s: _HELD_OUT_COLOUR if s in HELD_OUT_SETS else (90, 90, 90) for s in SETS}
    keys = [
        (s, c, code)
        for s in SETS
        for c, codes in sprites.CODE_POINTS.items()
        for code in codes.split()
    ]
    np.savez(path, **{f"{s}/{c}/{code}": _square(colours[s]) for s, c, code in keys})
    return path


@pytest.fixture(scope="module")
def drawings(sprites_file):
    return read_sprites(sprites_file, TRAINING_SETS)


def test_a_scene_depends_on_its_seed_alone(sprites_file):
    render = TrainingRenderer(sprites_file)
    np.testing.assert_array_equal(render(5).image, render(5).image)
    assert (render(5).image != render(6).image).any()


@pytest.mark.parametrize(("count", "seed"), [(1, 0), (1, 1), (2, 2), (2, 3)])
def test_caption_names_exactly_the_objects_in_the_mask(drawings, count, seed):
    scene = render_scene(seed, drawings, num_objects=count)
    in_mask = {CLASSES[k - 1] for k in np.unique(scene.label_map) if k}
    assert in_mask == set(scene.classes)
    assert len(in_mask) == count
    for name in scene.classes:
        assert f" {name}" in scene.caption


def test_mask_is_where_the_drawing_covers_half_of_a_pixel():
    # A black drawing on a lighter background; a pixel is a mix, so it is dark where it is covered.
    black = {"cat": [np.full((64, 64, 4), (0, 0, 0, 255), np.uint8)]}
    for seed in range(8):
        scene = render_scene(seed, black, classes=("cat",))
        inside = scene.label_map == CLASSES.index("cat") + 1
        assert scene.image[inside].max() <= 0.5 * 255 + 1
        # The darkest background is 0.4 * (1 - 0.45); a pixel covered by less than half is lighter.
        assert scene.image[~inside].max(axis=-1).min() >= 0.5 * 0.4 * 255 - 25
        assert 0.4 < inside.mean() < 0.8  # 68 % to 88 % of each side


def test_objects_are_large_and_two_do_not_overlap(drawings):
    for seed in range(30):
        one = render_scene(seed, drawings, num_objects=1).label_map > 0
        assert max(one.any(axis=0).sum(), one.any(axis=1).sum()) >= 0.66 * 128
        two = render_scene(seed, drawings, num_objects=2)
        for name in two.classes:
            mask = two.label_map == CLASSES.index(name) + 1
            # A rectangle of 3 x 4 whose longer side is 45 % of the frame, turned slightly.
            assert mask.mean() > 0.09


@pytest.mark.parametrize(
    ("classes", "background", "expected"),
    [
        (("horse", "motorbike"), "cloudy", "a horse and a motorbike on a cloudy background"),
        (("aeroplane",), None, "an aeroplane"),
        (("potted plant", "tv"), "plain", "a potted plant and a tv on a plain background"),
    ],
)
def test_captions_are_sentences(classes, background, expected):
    assert caption("a photo of", classes, background) == f"a photo of {expected}"


def test_every_background_is_drawn(drawings):
    captions = " ".join(render_scene(seed, drawings, side=32).caption for seed in range(60))
    assert all(f"on a {kind} background" in captions for kind in BACKGROUNDS)


def test_held_out_graphics_are_never_in_training(sprites_file):
    assert HELD_OUT_SETS == ("twemoji",)
    assert not set(HELD_OUT_SETS) & set(TRAINING_SETS)
    magenta = np.array(_HELD_OUT_COLOUR)

    def shows_magenta(render, seed):
        image = render(seed, num_objects=1).image.astype(int)
        return (abs(image - magenta).max(axis=-1) < 50).mean() > 0.2

    for seed in range(20):
        assert not shows_magenta(TrainingRenderer(sprites_file), seed)
        assert shows_magenta(UnseenRenderer(sprites_file), seed)


def test_classes_are_those_of_voc_but_the_dining_table():
    spelled = {"potted plant": "pottedplant", "tv": "tvmonitor"}
    assert [name for name in VOC_CLASSES if name != "diningtable"] == [
        spelled.get(name, name) for name in CLASSES
    ]


def test_some_captions_have_the_spelling_of_voc():
    captions = ["a photo of a tv and a potted plant", "a photo of a cat"]
    reworded = {recipe.reword(captions[0], index) for index in range(40)}
    assert reworded == {
        f"a photo of a {tv} and a {plant}"
        for tv, plant in (("tv", "potted plant"), ("tvmonitor", "pottedplant"))
    }
    assert recipe.reword(captions[1], 3) == captions[1]


def test_every_word_of_a_caption_is_one_token(tmp_path, drawings):
    vocabulary = write_tokenizer(tmp_path, recipe.WORDS, MAX_TOKENS)
    tokenizer = load_tokenizer(tmp_path)
    captions = [render_scene(seed, drawings, side=32).caption for seed in range(100)]
    captions = [recipe.reword(text, index) for index, text in enumerate(captions)]
    for text, row in zip(captions, tokenizer.encode(captions), strict=True):
        assert (row != vocabulary[END]).sum() == 1 + len(text.split())


def test_classes_of_two_words_and_of_two_letters_are_found(tmp_path):
    write_tokenizer(tmp_path, recipe.WORDS, MAX_TOKENS)
    prompts, classes = ["a photo of a potted plant and a tv"], [["tv", "potted plant"]]
    mask = class_token_mask(load_tokenizer(tmp_path), prompts, classes)
    assert [np.flatnonzero(row).tolist() for row in mask[0]] == [[9], [5, 6]]


def _write_archive(folder, package, files):
    path = folder / package.filename
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_fetch_refuses_a_wrong_hash(tmp_path):
    package = fetch.PACKAGES["noto"]
    path = _write_archive(tmp_path, package, {"icons.json": b"{}"})
    with pytest.raises(ValueError, match="@iconify-json/noto@1.2.9: sha512 is"):
        fetch.fetch(package, tmp_path)
    with pytest.raises(ValueError, match="sha512"):
        fetch.check_hash(path.read_bytes() + b"x", package)


def test_fetch_takes_an_archive_with_the_right_hash(tmp_path):
    package = fetch.PACKAGES["twemoji"]
    data = _write_archive(tmp_path, package, {"1f408.svg": b"<svg/>"}).read_bytes()
    digest = fetch.base64.b64encode(fetch.hashlib.sha512(data).digest()).decode()
    right = dataclasses.replace(package, sha512=digest)
    assert fetch.fetch(right, tmp_path).read_bytes() == data


def test_training_downloads_the_drawings_that_are_missing(tmp_path, monkeypatch):
    drawing = {
        code: _square((9, 9, 9)) for codes in sprites.CODE_POINTS.values() for code in codes.split()
    }
    fetched = []
    monkeypatch.setattr(fetch, "fetch", lambda package, folder: fetched.append((package, folder)))
    monkeypatch.setattr(sprites, "read_set", lambda archive, codes: drawing)
    assert recipe.make_renderer(tmp_path)(0).image.shape == (128, 128, 3)
    assert fetched == [(fetch.PACKAGES[s], tmp_path / "packages") for s in SETS]
    recipe.make_renderer(tmp_path)
    assert len(fetched) == len(SETS)  # what is there is not downloaded again


def test_a_machine_without_npm_or_network_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm, which downloads @iconify.* copy sprites.npz"):
        recipe.make_renderer(tmp_path / "run")
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\nexit 1\n")
    npm.chmod(0o755)
    with pytest.raises(UserError, match=r"npm cannot download .*\(npm error code ENOTFOUND\)"):
        recipe.make_renderer(tmp_path / "run")
    assert not (tmp_path / "run" / "sprites.npz").exists()


def test_a_machine_without_resvg_is_told_before_anything_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    monkeypatch.setattr(fetch, "fetch", None)
    with pytest.raises(UserError, match="resvg-py.*pip install"):
        sprites.ensure_sprites(tmp_path / "sprites.npz")


def test_a_program_shows_what_a_user_can_mend_in_one_line(tmp_path):
    command = [sys.executable, "-m", "experiments.stickers.scenes"]
    command += [f"--sprites={tmp_path}/sprites.npz"]
    env = {"PATH": str(tmp_path), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1 and "npm" in result.stderr


def test_a_drawing_is_as_resvg_renders_it():
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{_SVG_BODY}</svg>'
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=64))
    small = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    blocks = np.asarray(sprites.rasterise(svg)).reshape(64, 4, 64, 4, 4).mean(axis=(1, 3))
    np.testing.assert_array_equal(blocks, small)  # the edges lie between pixels of both sizes


_SVG_BODY = '<path fill="#f00" d="M8 4h16v8H8z"/>'


@pytest.mark.parametrize("layout", ["iconify", "svg", "webp"])
def test_drawings_are_read_from_each_layout_and_cut_to_their_alpha_box(tmp_path, layout):
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">{_SVG_BODY}</svg>'
    picture = np.zeros((256, 256, 4), np.uint8)
    picture[32:96, 64:192] = (255, 0, 0, 255)
    webp = io.BytesIO()
    Image.fromarray(picture).save(webp, "webp", lossless=True)
    files = {
        "iconify": {
            "icons.json": json.dumps(
                {"icons": {"cat": {"body": _SVG_BODY}}, "width": 32, "height": 32}
            ).encode(),
            "chars.json": b'{"1f408": "cat"}',
        },
        "svg": {"1f408.svg": svg.encode()},
        "webp": {"1f408-fe0f.webp": webp.getvalue()},
    }[layout]
    archive = _write_archive(tmp_path, fetch.PACKAGES["noto"], files)
    drawing = sprites.read_set(archive, ["1f408"])["1f408"]
    assert drawing.shape == (64, 128, 4)
    np.testing.assert_array_equal(drawing[32, 64], (255, 0, 0, 255))


def test_a_missing_drawing_is_an_error_that_names_it(tmp_path):
    archive = _write_archive(tmp_path, fetch.PACKAGES["twemoji"], {"1f408.svg": b"<svg/>"})
    with pytest.raises(ValueError, match="no drawing of 1f415"):
        sprites.read_set(archive, ["1f415"])
