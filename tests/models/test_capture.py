"""Which layers are recorded for the UNets of Stable Diffusion and for other shapes of UNet."""

import dataclasses
import json

import pytest

from seediff_jax.checkpoints.model_config import choose_capture
from seediff_jax.models.capture import (
    PRESETS,
    CaptureConfig,
    attention_layers,
    check_capture,
    published_capture,
)
from seediff_jax.models.config import unet_config
from tests.helpers.published_configs import SD1_UNET, SD2_UNET, XL_UNET

SD1, SD2, XL = map(unet_config, (SD1_UNET, SD2_UNET, XL_UNET))


def self_layer(i, j=0):
    return f"up_blocks.{i}.attentions.{j}.transformer_blocks.0.attn1"


def test_published_layers_of_stable_diffusion_1():
    """Two down and three up layers of cross-attention at 16; the first up layer of each level."""
    capture = published_capture(SD1)
    assert capture.cross_layers == (
        "down_blocks.2.attentions.0.transformer_blocks.0.attn2",
        "down_blocks.2.attentions.1.transformer_blocks.0.attn2",
        "up_blocks.1.attentions.0.transformer_blocks.0.attn2",
        "up_blocks.1.attentions.1.transformer_blocks.0.attn2",
        "up_blocks.1.attentions.2.transformer_blocks.0.attn2",
    )
    assert capture.self_layers == (self_layer(1), self_layer(2), self_layer(3))
    check_capture(capture, SD1)


def test_published_layers_of_stable_diffusion_xl():
    """At 32 two down and three up transformers of ten blocks each; no attention at 128."""
    capture = published_capture(XL)
    assert len(capture.cross_layers) == len(set(capture.cross_layers)) == 50
    assert {name.split(".attentions")[0] for name in capture.cross_layers} == {
        "down_blocks.2",
        "up_blocks.0",
    }
    assert capture.self_layers == (self_layer(0), self_layer(1))
    check_capture(capture, XL)


@pytest.mark.parametrize(
    ("config", "latent_side", "expected"),
    [
        (SD1, None, [16, 32, 64]),
        (SD2, None, [24, 48, 96]),
        (XL, None, [32, 64]),
        (SD1, 96, [24, 48, 96]),
        (SD1, 33, [9, 17, 33]),
    ],
)
def test_sides_follow_from_the_latents(config, latent_side, expected):
    sides = {layer.name: layer.side for layer in attention_layers(config, latent_side)}
    names = [name.removesuffix(".attn1") for name in published_capture(config).self_layers]
    assert [sides[name] for name in names] == expected


def test_stable_diffusion_has_16_transformer_blocks_in_running_order():
    layers = attention_layers(SD1)
    assert [layer.side for layer in layers] == [
        64,
        64,
        32,
        32,
        16,
        16,
        8,
        16,
        16,
        16,
        32,
        32,
        32,
        64,
        64,
        64,
    ]
    assert layers[6].name == "mid_block.attentions.0.transformer_blocks.0"


def test_the_mid_block_is_not_a_level():
    """As in the embedded model: seeds come from the coarsest UP level."""
    config = dataclasses.replace(
        SD1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )
    capture = published_capture(config)
    assert capture.self_layers == (self_layer(2), self_layer(3))
    assert [name.split(".attentions")[0] for name in capture.cross_layers] == (
        ["down_blocks.1"] * 2 + ["up_blocks.2"] * 3
    )


def test_all_transformer_blocks_of_a_layer_are_named():
    config = dataclasses.replace(SD1, transformer_layers_per_block=(1, 1, 2, 1))
    capture = published_capture(config)
    assert len(capture.cross_layers) == 10
    assert capture.self_layers[0] == self_layer(1)


def test_an_unknown_layer_is_refused_with_the_list_of_those_that_exist():
    wrong = CaptureConfig(self_layers=("up_blocks.0.attentions.0.transformer_blocks.0.attn1",))
    with pytest.raises(ValueError) as caught:
        check_capture(wrong, SD1)
    assert "no layer 'up_blocks.0." in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1 + 16


def test_cross_attention_is_refused_as_a_self_layer():
    with pytest.raises(ValueError, match="no layer"):
        check_capture(CaptureConfig(self_layers=(self_layer(1).replace("attn1", "attn2"),)), SD1)


def test_two_self_layers_of_one_side_are_refused():
    with pytest.raises(ValueError, match=r"one side each, got sides \[16, 16\]"):
        check_capture(CaptureConfig(self_layers=(self_layer(1), self_layer(1, 1))), SD1)


def test_cross_layers_off_the_seed_level_are_refused():
    capture = CaptureConfig(
        cross_layers=("up_blocks.2.attentions.0.transformer_blocks.0.attn2",),
        self_layers=(self_layer(1), self_layer(2)),
    )
    with pytest.raises(ValueError, match=r"cross layers have sides \[32\]; .*side 16"):
        check_capture(capture, SD1)


def test_without_self_layers_the_cross_layers_are_of_one_side():
    layers = [f"up_blocks.{i}.attentions.0.transformer_blocks.0.attn2" for i in (1, 2)]
    check_capture(CaptureConfig(cross_layers=(layers[1],)), SD1)
    with pytest.raises(ValueError, match=r"cross layers need one side, got sides \[16, 32\]"):
        check_capture(CaptureConfig(cross_layers=tuple(layers)), SD1)


def test_a_repeated_cross_layer_is_refused():
    published = published_capture(SD1)
    twice = dataclasses.replace(published, cross_layers=published.cross_layers[:1] * 2)
    with pytest.raises(ValueError, match="a layer stands twice in .*down_blocks.2"):
        check_capture(twice, SD1)


def test_latents_too_small_to_keep_the_levels_apart_are_refused():
    check_capture(published_capture(SD1), SD1, latent_side=3)
    with pytest.raises(ValueError, match=r"got sides \[1, 1, 2\]"):
        check_capture(published_capture(SD1), SD1, latent_side=2)


def test_coarse_is_published_without_the_finest_level():
    published, coarse = published_capture(SD2), PRESETS["coarse"](SD2)
    assert coarse.cross_layers == published.cross_layers
    assert coarse.self_layers == published.self_layers[:2]
    one_level = dataclasses.replace(published, self_layers=published.self_layers[:1])
    check_capture(coarse, SD2)
    check_capture(one_level, SD2)


def test_two_levels_has_the_cross_attention_of_the_next_coarser_side_too():
    published, both = published_capture(SD1), PRESETS["two_levels"](SD1)
    mid = "mid_block.attentions.0.transformer_blocks.0.attn2"
    assert both == dataclasses.replace(published, cross_layers=(*published.cross_layers, mid))
    check_capture(both, SD1)
    with pytest.raises(ValueError, match="this UNet has no attention coarser than side 32"):
        PRESETS["two_levels"](XL)


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ((0.0, 1.0), [0, 1, 2, 3, 4]),
        ((0.0, 0.4), [0, 1]),
        ((0.5, 1.0), [2, 3, 4]),  # the middle of call 2 is half of the run
        ((0.9, 0.95), [4]),
    ],
)
def test_calls_whose_middle_lies_in_the_part_are_averaged(calls, expected):
    recorded = CaptureConfig(calls=calls).recorded_calls(5)
    assert [i for i, yes in enumerate(recorded) if yes] == expected


def test_a_part_without_any_call_is_refused():
    with pytest.raises(ValueError, match=r"none of 5 UNet calls lies in calls=\[0.2, 0.25\]"):
        CaptureConfig(calls=(0.2, 0.25)).recorded_calls(5)


@pytest.mark.parametrize("calls", [(0.5, 0.5), (0.6, 0.2), (-0.1, 0.5), (0.5, 1.1)])
def test_calls_outside_a_run_are_refused(calls):
    with pytest.raises(ValueError, match="must rise, within 0..1"):
        CaptureConfig(calls=calls)


def test_a_file_chooses_layers_and_calls(tmp_path):
    path = tmp_path / "own.json"
    content = {"cross_layers": [self_layer(1).replace("attn1", "attn2")]}
    content |= {"self_layers": [self_layer(1), self_layer(3)], "calls": [0, 0.5]}
    path.write_text(json.dumps(content))
    capture = choose_capture(str(path), SD1)
    assert capture == CaptureConfig(**{name: tuple(v) for name, v in content.items()})
    assert choose_capture(capture, SD1) == capture
    assert choose_capture("published", SD1) == published_capture(SD1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"cross_layers": [], "self_layers": [], "steps": [1]}, "nothing else"),
        ({"cross_layers": [], "self_layers": "all"}, "nothing else"),
        ({"cross_layers": [], "self_layers": [3]}, "nothing else"),
        (
            {"cross_layers": [], "self_layers": [], "calls": [0.5]},
            r"optionally \"calls\": \[from, to\]",
        ),
        ({"cross_layers": [], "self_layers": [], "calls": [1, 0]}, "must rise"),
        ({"cross_layers": [], "self_layers": ["attn1"]}, "no layer 'attn1'; this UNet has"),
    ],
)
def test_a_file_with_an_impossible_choice_is_refused(tmp_path, content, message):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        choose_capture(str(path), SD1)


def test_an_unknown_preset_and_a_missing_file_are_refused():
    with pytest.raises(
        ValueError,
        match="'all' is not one of published, coarse, .*, and not a .json file",
    ):
        choose_capture("all", SD1)
    with pytest.raises(ValueError, match="own.json is missing"):
        choose_capture("own.json", SD1)
