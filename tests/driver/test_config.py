"""What a run is asked for: prompts, thresholds, settings."""

import dataclasses
import json

import pytest

from seediff_jax.driver.config import RunConfig
from seediff_jax.errors import UserError
from seediff_jax.masks.config import MaskConfig
from seediff_jax.prompts.class_lists import VOC_CLASSES
from seediff_jax.prompts.prompt_plan import PromptPlan
from seediff_jax.prompts.prompt_record import PromptRecord
from seediff_jax.sampling.config import SamplingConfig

DOG = PromptRecord("a dog", ("dog",))


def make_config(**options):
    options = {
        "plan": PromptPlan(records=(DOG,)),
        "class_names": VOC_CLASSES,
        "output": "out",
    } | options
    return RunConfig(num_images=3, **options)


def test_the_plan_says_which_prompt_an_image_shows():
    cat = PromptRecord("a cat", ("cat",))
    config = make_config(plan=PromptPlan(records=(DOG, cat), images_per_prompt=2))
    assert [config.record(i) for i in range(5)] == [DOG, DOG, cat, cat, DOG]


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
    masks = MaskConfig(method=method, **options)
    assert (masks.resolved.threshold, masks.resolved.uncertain) == expected


def test_settings_survive_json():
    settings = make_config(masks=MaskConfig(uncertain=0.3, dilations=(1, 2))).settings()
    assert json.loads(json.dumps(settings)) == settings


def test_the_settings_of_the_plan_are_among_those_of_the_run():
    plan = PromptPlan(records=(DOG,), shuffle_seed=3)
    assert plan.settings().items() <= make_config(plan=plan).settings().items()


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"output": "elsewhere"}])
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


def test_an_embedded_model_knows_the_negative_prompt_or_refuses_it():
    negative = SamplingConfig(negative_prompt="a blurry cat")
    with pytest.raises(UserError, match="does not know 'blurry' in the negative prompt 'a blurry"):
        make_config(sampling=negative)
    made = make_config(sampling=negative, model="/models/sd").sampling
    assert made == dataclasses.replace(negative, presence_draws=0)
    make_config(sampling=SamplingConfig(negative_prompt="a striped background"))
