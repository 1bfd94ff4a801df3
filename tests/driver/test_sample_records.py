"""What is written of a sample, and that one that goes wrong stops no other."""

import numpy as np
import pytest

from seediff_jax.driver.sample_maker import (
    Failure,
    class_mask,
    failed_sample,
    failed_stage,
    make_record,
)
from seediff_jax.prompts.prompt_record import PromptRecord

PROMPT = PromptRecord("a zebra and a cat", ("zebra", "cat"))
CLASS_NAMES = ("cat", "dog", "zebra")
LABELS = np.zeros((6, 8), np.uint8)
LABELS[:3, :4], LABELS[3:5, :4], LABELS[5] = 1, 2, 255


def record(labels=LABELS):
    return make_record(
        4,
        PROMPT,
        CLASS_NAMES,
        class_mask(labels, [3, 1]),
        token_positions=[[2], np.array([5, 6]).tolist()],
        seed_counts=np.array([5, 7], np.int32),
        scores=np.array([0.75, 0.1 + 0.2], np.float32),
        presence=np.array([0.9, 0.6], np.float32),
    )


def test_masks_hold_the_ids_of_the_run():
    expected = np.zeros((6, 8), np.uint8)
    expected[:3, :4], expected[3:5, :4], expected[5] = 3, 1, 255  # zebra is third, cat first
    np.testing.assert_array_equal(class_mask(LABELS, [3, 1]), expected)


def test_a_record_tells_everything_about_its_sample():
    assert record() == {
        "index": 4,
        "prompt": "a zebra and a cat",
        "classes": ["zebra", "cat"],
        "class_ids": [3, 1],
        "token_positions": [[2], [5, 6]],
        "area_fractions": [12 / 48, 8 / 48],
        "scores": [0.75, 0.3],
        "presence": [0.9, 0.6],
        "seed_counts": [5, 7],
        "empty": [],
        "ignored_fraction": 8 / 48,
    }


def test_a_class_without_a_pixel_is_reported_as_empty():
    assert record(np.minimum(LABELS, 1))["empty"] == ["cat"]


@pytest.mark.parametrize("stage", ["text_embeddings", "latents", "images"])
def test_the_first_stage_that_is_not_finite_is_the_reason(stage):
    stages = ["text_embeddings", "latents", "images"]
    is_finite = {name: stages.index(name) < stages.index(stage) for name in stages}
    assert failed_stage(is_finite) == f"{stage} are not finite"
    assert failed_stage(dict.fromkeys(stages, True)) is None


def test_a_failed_sample_has_a_record_and_no_files():
    made = failed_sample(Failure(4, "latents are not finite"), PROMPT)
    assert made.index == 4 and made.files == {}
    assert made.record == {
        "index": 4,
        "failed": "latents are not finite",
        "prompt": "a zebra and a cat",
        "classes": ["zebra", "cat"],
    }
