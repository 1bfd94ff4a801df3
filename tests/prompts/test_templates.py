"""Prompts from templates, and the words by which they name their classes."""

import pytest

from seediff_jax.prompts.class_lists import COCO_CLASSES, VOC_CLASSES
from seediff_jax.prompts.mentions import mention_finder
from seediff_jax.prompts.prompt_record import PromptRecord
from seediff_jax.prompts.templates import make_prompts, read_templates, with_subclasses

KINDS = {"dog": ["hound", "owl hound"], "Potted Plant": ["fern"]}


@pytest.mark.parametrize(
    ("template", "name", "prompt"),
    [
        ("a photo of a {class}", "dog", "a photo of a dog"),
        ("a photo of a {class}", "aeroplane", "a photo of an aeroplane"),
        ("A {class}, outdoors", "umbrella", "An umbrella, outdoors"),
        ("An {class}", "bus", "A bus"),
        ("a {class}", "unicorn", "a unicorn"),
        ("a {class}", "hourglass", "an hourglass"),
        ("a {class}", "SUV", "an SUV"),
        ("the {class}", "orange", "the orange"),
        ("banana {class}", "orange", "banana orange"),
        ("{class} {{raw}}; {class}", "ox", "ox {raw}; ox"),
        ("a {subclass} and a {class}", "orange", "an orange and an orange"),
    ],
)
def test_a_template_is_filled_with_the_right_article(template, name, prompt):
    assert make_prompts([name], template) == [PromptRecord(prompt, (name,))]


def test_prompts_are_ordered_by_template_then_class_then_sub_class():
    templates = ["one {class}", "a {subclass}", "a {subclass}, which is a {class}"]
    records = make_prompts(["cat", "dog", "pottedplant"], templates, KINDS)
    assert [(record.prompt, *record.classes) for record in records] == [
        ("one cat", "cat"),
        ("one dog", "dog"),
        ("one pottedplant", "pottedplant"),
        ("a cat", "cat"),  # which is its only kind
        ("a hound", "dog"),
        ("an owl hound", "dog"),
        ("a fern", "pottedplant"),
        ("a cat, which is a cat", "cat"),
        ("a hound, which is a dog", "dog"),
        ("an owl hound, which is a dog", "dog"),
        ("a fern, which is a pottedplant", "pottedplant"),
    ]


def test_the_word_of_a_sub_class_names_the_class():
    synonyms = with_subclasses(["dog"], "a {subclass}", KINDS)
    (spans,) = mention_finder(synonyms).require("an owl hound", ["dog"]).values()
    assert spans == [(3, 12)]


def test_sub_classes_are_added_to_the_synonyms_of_a_class():
    assert with_subclasses(["dog"], "a {class}", KINDS) == {}
    built_in = with_subclasses(["dog"], "a {subclass}", KINDS)["dog"]
    assert built_in[-2:] == ("hound", "owl hound") and "puppy" in built_in
    own = with_subclasses(["dog"], "a {subclass}", KINDS, {"Dog": ["cur"], "cat": []})
    assert own == {"dog": ("cur", "hound", "owl hound"), "cat": ()}
    assert with_subclasses(["cat"], ["{class}", "{subclass}"], KINDS, {"cat": []}) == {"cat": ()}


@pytest.mark.parametrize("classes", [VOC_CLASSES, COCO_CLASSES])
def test_the_built_in_sub_classes_make_prompts_that_name_their_class(classes):
    records = make_prompts(classes, "a photo of a {subclass}")
    assert {name for record in records for name in record.classes} == set(classes)
    assert len({record.prompt for record in records}) == len(records) > 90
    prompts = [record.prompt for record in records]
    assert {"a photo of a puppy", "a photo of an eagle", "a photo of a woman"} <= set(prompts)


def test_a_prompt_that_does_not_name_its_class_is_an_error():
    with pytest.raises(ValueError, match=r"'a hot dog' does not name class 'dog' \('hot dog'"):
        make_prompts(["dog"], "a hot {class}")


@pytest.mark.parametrize(
    "template", ["a photo", "", "a {}", "a {class} {color}", "a {class!r}", "a {subclass:>9}", "{c"]
)
def test_a_template_without_the_class_or_with_another_field_is_an_error(template):
    with pytest.raises(ValueError, match="template"):
        make_prompts(["dog"], template)


@pytest.mark.parametrize("classes", [[], "dog", ["dog", "dog"]])
def test_templates_need_different_classes(classes):
    with pytest.raises(ValueError, match="make_prompts: .*class"):
        make_prompts(classes)


def test_a_template_file_has_one_template_per_line(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("# mine\na {class}\n\n  the {subclass}  \n")
    assert read_templates(path) == ["a {class}", "the {subclass}"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a {class}\na {colour}\n", r"t\.txt:2: template 'a \{colour\}' must name the class"),
        ("a {class}\n{", r"t\.txt:2: template '\{' cannot be read"),
        ("# nothing", r"t\.txt: no template in the file"),
    ],
)
def test_a_bad_template_of_a_file_is_named_by_its_line(tmp_path, content, message):
    path = tmp_path / "t.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_templates(path)
