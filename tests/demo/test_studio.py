"""The demo without its page: live masks, downloads, and a command line that makes the same."""

import dataclasses
import io
import json
import shlex
import zipfile

import numpy as np
import pytest

from seediff_jax.dataset.encoding import decode_png
from seediff_jax.demo import studio as studios
from seediff_jax.demo.studio import Studio
from seediff_jax.driver.config import ModelSource
from seediff_jax.errors import UserError
from seediff_jax.main import define_flags, main, make_config, read_command_line
from seediff_jax.masks.config import MaskConfig
from seediff_jax.prompts.prompt_source import make_plan
from seediff_jax.prompts.settings import PromptSource

FEW = {"num_steps": 2, "guidance_scale": 7.5}


@pytest.fixture(scope="module")
def studio():
    return Studio(ModelSource(model="shapes"))


@pytest.fixture(scope="module")
def sampled(studio):
    return studio.sample("a ring and a star", "", 3, FEW)


def files_of(result):
    archive = zipfile.ZipFile(io.BytesIO(result.archive))
    assert archive.testzip() is None
    return {name: archive.read(name) for name in archive.namelist()}


def test_classes_are_found_in_the_prompt_or_taken_from_the_list(studio, sampled):
    assert sampled.pairs[0].classes == ("star", "ring")
    asked = studio.sample("a ring and a star", " star ", 3, FEW)
    assert asked.pairs[0].classes == ("star",)


@pytest.mark.parametrize(
    ("prompt", "classes", "changes", "message"),
    [
        (
            "a photo of a dog",
            "dog",
            {},
            "model 'shapes' does not know 'dog' in the prompt 'a photo of a dog'",
        ),
        (" ", "", {}, "the prompt is empty"),
        ("a ring", "names.txt", {}, "this page takes names"),
        ("a ring", "star", {}, "star"),
        ("a ring", "", {"num_steps": 0}, "num_steps=0 must be a whole number in 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(studio, prompt, classes, changes, message):
    with pytest.raises(UserError, match=message):
        studio.sample(prompt, classes, 0, FEW | changes)


def test_other_masks_sample_nothing(studio, sampled, monkeypatch):
    def generate(*_, **__):
        raise AssertionError("a mask was asked for, not an image")

    monkeypatch.setattr(studios, "generate", generate)
    configs = [
        MaskConfig(),
        MaskConfig(threshold=0.2),
        MaskConfig(method="cross_attention"),
        MaskConfig(refine_iterations=2),
    ]
    results = [studio.mask(sampled, config) for config in configs]
    masks = {files_of(result)["mask.png"] for result in results}
    assert len(masks) == len(configs)
    assert len({files_of(result)["image.png"] for result in results}) == 1


def test_stages_name_class_and_level(studio, sampled):
    captions = [caption for caption, _ in studio.mask(sampled, MaskConfig()).stages]
    sides = sampled.pairs.attention_maps.sides
    for k, name in enumerate(("star", "ring")):
        own = captions[k * len(captions) // 2 :][: len(captions) // 2]
        assert own[0].startswith(f"{name}, seeds: ") and own[-1] == f"{name}, mask"
        assert own[1:-1] == [f"{name}, level {side} x {side}" for side in sides]


def test_the_command_that_is_shown_makes_the_same_image_mask_and_settings(
    studio, sampled, tmp_path, monkeypatch
):
    result = studio.mask(sampled, MaskConfig(threshold=0.4, refine_iterations=1))
    assert "--prompt='a ring and a star'" in result.command.replace("'--prompt=", "--prompt='")
    files = files_of(result)
    assert files["command.txt"].decode() == result.command + "\n"
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(result.command)) == 0
    made = tmp_path / result.command.rpartition("--output=")[2]
    # Another batch size: rounding, which may move a colour by a unit and a mask's edge by a pixel.
    (image, mask), (other_image, other_mask) = (
        [decode_png(read(name)) for name in ("image", "mask")]
        for read in (
            lambda name: files[f"{name}.png"],
            lambda name: (made / name / "000000.png").read_bytes(),
        )
    )
    assert np.abs(image.astype(int) - other_image).max() <= 1
    assert mask.any() and np.mean(mask != other_mask) < 0.002
    stored = json.loads((made / "settings.json").read_bytes())
    shown = json.loads(files["settings.json"])
    assert shown == {name: stored[name] for name in shown}
    assert files["classes.txt"] == (made / "classes.txt").read_bytes()


def test_a_command_writes_to_a_folder_of_its_own(sampled):
    configs = [
        sampled.config,
        dataclasses.replace(sampled.config, rng_seed=4),
        dataclasses.replace(sampled.config, masks=MaskConfig(threshold=0.2)),
    ]
    folders = [studios.command_line(each).rpartition(" --output=")[2] for each in configs * 2]
    assert folders[:3] == folders[3:] and len({*folders}) == 3
    assert all(folder.startswith("outputs/demo_") for folder in folders)


def test_quotes_and_dashes_of_a_prompt_survive_the_command(sampled):
    prompt = """--a "red" ring; isn't it"""
    source = PromptSource(model="shapes", texts=(prompt,), classes=("ring",))
    words = shlex.split(studios.command_line(dataclasses.replace(sampled.config, prompts=source)))
    assert words[:3] == ["seediff", f"--prompt={prompt}", "--classes=ring"]


def own_method(cross_attention, self_attention, image_side):
    """A method of one's own, of which a command line has the name alone."""


@pytest.mark.parametrize(
    ("classes", "class_ids", "cat"),
    [(("boat", "cat"), None, 2), (("boat", "cat"), "voc", 8), (("voc",), None, 8), (None, None, 8)],
    ids=["numbered", "ids_of_a_list", "a_list", "found"],
)
def test_the_command_has_the_method_and_the_class_ids_of_the_page(sampled, classes, class_ids, cat):
    source = PromptSource(
        model="stickers", texts=("a cat and a boat",), classes=classes, class_ids=class_ids
    )
    plan, class_names = make_plan(source)
    config = dataclasses.replace(
        sampled.config,
        model="stickers",
        prompts=source,
        plan=plan,
        class_names=class_names,
        masks=MaskConfig(method=own_method),
    )
    values = define_flags()
    values(shlex.split(studios.command_line(config)))
    read = make_config(read_command_line(values))
    assert read.class_names == class_names and class_names.index("cat") + 1 == cat
    assert read.masks == MaskConfig(method=f"{__name__}:own_method")
