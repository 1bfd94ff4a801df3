"""The prompts of given images: one list of classes for all, or a list for each."""

import unicodedata

import pytest

from seediff_jax.errors import UserError
from seediff_jax.prompts.class_lists import VOC_CLASSES
from seediff_jax.prompts.prompt_source import make_image_plan
from seediff_jax.prompts.templates import list_classes

TEMPLATE = "a photo of {classes}"


def test_a_prompt_names_all_classes_with_their_articles():
    names = ["cat", "aeroplane", "unicorn"]
    assert list_classes(TEMPLATE, names) == "a photo of a cat and an aeroplane and a unicorn"
    assert list_classes("{classes}, {{x}}", ["hour {glass}"]) == "an hour {glass}, {x}"
    with pytest.raises(UserError, match=r"must name the classes as \{classes\}"):
        list_classes("a photo of a {class}", ["cat"])


def plan_of(*images, model="a model", **options):
    plan, class_names = make_image_plan(model, images, TEMPLATE, **options)
    return [plan.record(i) for i in range(len(images))], class_names


def test_one_list_is_looked_for_in_every_image():
    records, class_names = plan_of("a.jpg", "b.jpg", classes=["house", "cat"])
    assert class_names == ("house", "cat")
    assert [each.prompt for each in records] == ["a photo of a house and a cat"] * 2
    assert records[1].classes == ("house", "cat") and not records[1].unnamed


def test_ids_are_those_of_a_list_that_is_asked_for():
    assert plan_of("a.jpg", classes=["dog", "cat"])[1] == ("dog", "cat")
    records, class_names = plan_of("a.jpg", classes=["dog", "couch"], class_ids="voc")
    assert (records[0].classes, class_names) == (("dog", "sofa"), VOC_CLASSES)
    with pytest.raises(UserError, match="class_ids=voc has no id for 'zebra'"):
        plan_of("a.jpg", classes=["zebra"], class_ids="voc")


def test_a_named_list_leaves_out_what_the_embedded_model_does_not_know():
    records, class_names = plan_of("a.jpg", model="stickers", classes=["voc"])
    assert class_names == VOC_CLASSES
    assert len(records[0].classes) == 19 and "diningtable" not in records[0].classes


def test_each_image_can_have_a_list(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("# image: classes\na: cat\nb.jpg: Dog, cat\nunused: boat\n")
    records, class_names = plan_of("a.jpg", "b.jpg", "b.jpg", image_classes=str(path))
    assert [each.classes for each in records] == [("cat",), ("dog", "cat"), ("dog", "cat")]
    assert records[1].prompt == "a photo of a Dog and a cat"
    assert class_names == VOC_CLASSES
    (tmp_path / "classes.json").write_text('{"a": ["house"]}')
    records, class_names = plan_of(
        "a.jpg", classes=["roof", "house"], image_classes=str(tmp_path / "classes.json")
    )
    assert (records[0].classes, class_names) == (("house",), ("roof", "house"))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("a: cat\n", {}, "has no entry for the image 'b.jpg'"),
        ("a: cat\nb:\n", {}, "2: image 'b': the list of classes is empty"),
        ("a: cat\na: dog\n", {}, "2: image 'a' has an entry already"),
        ("a: cat, cats\n", {}, None),
        ("a: cat, cat\n", {}, "'cat' and 'cat' are the same name"),
        (
            "a: cat\nb: zebra\n",
            {"classes": ["cat", "dog"]},
            "image 'b.jpg' has 'zebra', which is not one of --classes",
        ),
        (
            "a: cat\nb: zebra\n",
            {"model": "stickers"},
            "the embedded model 'stickers' does not draw 'zebra'",
        ),
    ],
)
def test_lists_that_do_not_fit_are_refused(tmp_path, content, options, message):
    path = tmp_path / "classes.txt"
    path.write_text(content)
    if message is None:
        assert plan_of("a.jpg", image_classes=str(path))[0][0].classes == ("cat", "cats")
        return
    with pytest.raises(UserError, match=message):
        plan_of("a.jpg", "b.jpg", image_classes=str(path), **options)


def test_the_name_of_an_image_is_the_same_in_any_form_of_unicode(tmp_path):
    composed, split = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    path = tmp_path / "classes.txt"
    path.write_text(f"{composed}: cat\n{split}2: dog\n")
    records, _ = plan_of(f"{split}.jpg", f"{composed}2.jpg", image_classes=str(path))
    assert [record.classes for record in records] == [("cat",), ("dog",)]


def test_a_class_that_the_embedded_model_does_not_know_is_refused():
    with pytest.raises(UserError, match="'stickers' does not draw 'zebra'; it draws aeroplane"):
        plan_of("a.jpg", model="stickers", classes=["cat", "zebra"])
    with pytest.raises(UserError, match="say what to look for"):
        plan_of("a.jpg")
