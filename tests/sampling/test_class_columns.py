"""Columns of classes that prompts name, and of classes that they do not."""

import numpy as np
import pytest

from seediff_jax.checkpoints.load import make_model
from seediff_jax.prompts.tokenizer import class_token_mask, load_tokenizer
from seediff_jax.sampling.inputs import class_columns
from tests.helpers.random_models import small_config
from tests.helpers.tokenizer_folders import write_tokenizer

PROMPTS = ["a photo of a dog", "a photo"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model without weights; its tokenizer alone is read."""
    folder = tmp_path_factory.mktemp("made")
    config = small_config(folder / "tokenizer")
    tokenizer = load_tokenizer(write_tokenizer(folder / "small"))
    return make_model(config, {}, model_id="none").with_config(tokenizer=tokenizer)


def positions(mask):
    return [[np.flatnonzero(row).tolist() for row in rows] for rows in mask]


def test_named_classes_are_marked_in_the_prompt(model):
    columns = class_columns(model, PROMPTS[:1], [["dog"]])
    expected = class_token_mask(model.tokenizer, PROMPTS[:1], [["dog"]])
    np.testing.assert_array_equal(columns.token_mask, expected)
    assert columns.texts is columns.text_token_mask is None


def test_unnamed_classes_are_marked_in_a_separate_text(model):
    """In the small vocabulary "dog" and "aeroplane" are one and two tokens, "and" three."""
    columns = class_columns(model, PROMPTS, [["dog"], []], [["aeroplane"], ["aeroplane", "dog"]])
    assert columns.texts == ["aeroplane", "aeroplane and dog"]
    assert positions(columns.token_mask) == [[[5], []], [[], []]]
    assert positions(columns.text_token_mask) == [[[], [1, 2]], [[1, 2], [6]]]


def test_synonyms_name_classes_in_both_texts(model):
    columns = class_columns(model, ["a hound"], [["dog"]], [["lane"]], synonyms={"dog": ["hound"]})
    assert columns.token_mask[0, 0].any() and columns.text_token_mask[0, 1].any()


@pytest.mark.parametrize(
    ("classes", "unnamed", "message"),
    [
        ([["dog"], []], [["dog"], ["dog"]], "'dog' and 'dog' are the same name"),
        ([[], []], [["dog"], ["dog"]], "names 'dog', which is listed as an unnamed class"),
        ([["dog"], []], [["lane"]], "got 2 prompts, but 2 lists of classes and 1 lists of unnamed"),
        ([["dog"], []], [[], []], "the list of classes is empty"),
        ([["dog"], []], [["lane"], ["lane"] * 2], "are the same name"),
        (
            [["dog"], []],
            [["lane"], [f"z{i}" for i in range(40)]],
            "takes .* tokens|beyond the last",
        ),
    ],
)
def test_lists_that_do_not_match_the_prompts_are_refused(model, classes, unnamed, message):
    with pytest.raises(ValueError, match=message):
        class_columns(model, PROMPTS, classes, unnamed)
