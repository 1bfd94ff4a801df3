"""Prompt records."""

import pytest

from seediff_jax.prompts.prompt_record import PromptRecord


def test_a_record_is_hashable_and_keeps_the_order_of_its_classes():
    record = PromptRecord("a dog and a cat", ["dog", "cat"])
    assert record.classes == ("dog", "cat")
    assert record in {PromptRecord("a dog and a cat", ("dog", "cat"))}


def test_named_classes_are_those_before_the_unnamed():
    assert PromptRecord("a dog", ("dog", "sky", "sea"), ("sky", "sea")).named == ("dog",)
    assert PromptRecord("a dog", ("dog",)).named == ("dog",)
    with pytest.raises(ValueError, match="must be the last of classes"):
        PromptRecord("a dog", ("sky", "dog"), ("sky",))


@pytest.mark.parametrize(
    ("prompt", "classes", "message"),
    [
        (" ", ("dog",), "not blank, got ' '"),
        (None, ("dog",), "got None"),
        ("a dog", (), "prompt 'a dog': the list of classes is empty"),
        ("a dog", "dog", "list of names"),
        ("a dog", ("dog", "DOG"), "same name"),
    ],
)
def test_a_record_refuses_a_blank_prompt_and_bad_classes(prompt, classes, message):
    with pytest.raises(ValueError, match=message):
        PromptRecord(prompt, classes)
