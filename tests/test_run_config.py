"""What a run is asked for: class lists, prompts, thresholds, settings."""

import json
from pathlib import Path

import pytest

from seediff_jax.masks import MaskConfig
from seediff_jax.prompts import COCO_CLASSES, SHAPES_CLASSES, VOC_CLASSES, PromptRecord
from seediff_jax.run_config import RunConfig, make_records

DOG = PromptRecord("a dog", ("dog",))


def make_config(**options):
    options = {"records": (DOG,), "class_names": VOC_CLASSES, "output": Path("out")} | options
    return RunConfig(num_images=3, **options)


def test_without_anything_each_shape_gets_a_prompt():
    records, names = make_records("shapes", None, None, None)
    assert [record.classes for record in records] == [(name,) for name in SHAPES_CLASSES]
    assert records[3].prompt == "a photo of a star" and names == SHAPES_CLASSES


def test_another_model_needs_to_be_told_what_to_show():
    with pytest.raises(ValueError, match="needs a prompt file"):
        make_records("owner/model", None, None, None)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["voc"], VOC_CLASSES),
        (["coco"], COCO_CLASSES),
        (["star", "ring"], SHAPES_CLASSES),
        (["dog", "person"], VOC_CLASSES),  # COCO has both too; VOC goes first
        (["dog", "zebra"], COCO_CLASSES),
        (["dog", "unicorn"], ("dog", "unicorn")),
    ],
)
def test_ids_are_those_of_the_first_official_list_that_holds_all_classes(classes, expected):
    assert make_records("m", None, classes, "one {class}")[1] == expected


def test_ids_of_unknown_classes_follow_their_first_mention(tmp_path):
    path = tmp_path / "prompts.jsonl"
    lists = [["unicorn", "dragon"], ["elf", "unicorn"]]
    lines = [json.dumps({"prompt": " ".join(names), "classes": names}) for names in lists]
    path.write_text("\n".join(lines))
    assert make_records("m", str(path), None, None)[1] == ("unicorn", "dragon", "elf")


def test_more_classes_than_ids_are_refused():
    names = [f"thing{i}" for i in range(255)]
    with pytest.raises(ValueError, match="255 classes, but a mask has ids for 254"):
        make_records("m", None, names, None)


def test_images_cycle_through_the_prompts():
    cat = PromptRecord("a cat", ("cat",))
    config = make_config(records=(DOG, cat))
    assert [config.record(i) for i in range(4)] == [DOG, cat, DOG, cat]


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("seediff", {}, (0.5, None)),
        ("seediff", {"uncertain": 0.2}, (0.5, 0.2)),
        ("exponentiation", {}, (0.6, 0.5)),
        ("exponentiation", {"threshold": 0.4}, (0.4, None)),
        ("exponentiation", {"uncertain": 0.1}, (0.6, 0.1)),
    ],
)
def test_thresholds_that_are_not_given_are_the_published_ones(method, options, expected):
    config = make_config(mask_config=MaskConfig(method=method), **options)
    assert config.pair_settings.thresholds == expected


def test_settings_survive_json():
    settings = make_config(uncertain=0.3, dilations=(1, 2)).settings()
    assert json.loads(json.dumps(settings)) == settings


def test_settings_tell_other_prompts_apart():
    longer = make_config(records=(DOG, DOG))
    other = make_config(records=(PromptRecord("the dog", ("dog",)),))
    hashes = {config.settings()["prompts_sha256"] for config in (make_config(), longer, other)}
    assert len(hashes) == 3


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"output": Path("elsewhere")}])
def test_batch_size_and_folder_are_no_settings_of_a_sample(options):
    assert make_config(**options).settings() == make_config().settings()


@pytest.mark.parametrize(
    "options",
    [{"loras": (("style.safetensors", 0.8),)}, {"revision": "fp16"}, {"tokenizer": "owner/model"}],
)
def test_what_changes_the_model_is_a_setting_of_a_sample(options):
    settings, plain = make_config(**options).settings(), make_config().settings()
    assert settings != plain
    assert json.loads(json.dumps(settings)) == settings
