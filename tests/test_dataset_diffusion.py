"""Prompt files in the form of Dataset Diffusion."""

import json

import pytest

from seediff_jax.dataset_diffusion import read_dataset_diffusion
from seediff_jax.prompt_records import PromptRecord


def write(folder, entries):
    path = folder / "prompts.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return path


def captions(*pairs):
    return [
        {"filename": f"{i}.jpg", "caption": caption, "class_prompt": names}
        for i, (caption, names) in enumerate(pairs)
    ]


def test_the_caption_is_the_prompt_and_the_class_prompt_its_classes(tmp_path):
    path = write(
        tmp_path,
        captions(
            ("a baby in a yellow toy car; person car", "person car"),
            ("a television on a table; tv monitor dining table", "tv monitor dining table"),
            ("a woman and a girl on a couch; person person sofa", "person person sofa"),
        ),
    )
    assert read_dataset_diffusion(path) == [
        PromptRecord("a baby in a yellow toy car; person car", ("person", "car")),
        PromptRecord(
            "a television on a table; tv monitor dining table", ("tvmonitor", "diningtable")
        ),
        PromptRecord("a woman and a girl on a couch; person person sofa", ("person", "sofa")),
    ]


def test_a_class_that_the_caption_does_not_name_is_an_unnamed_one_and_comes_last(tmp_path):
    path = write(tmp_path, captions(("people at the ocean", "bird person surfboard")))
    assert read_dataset_diffusion(path) == [
        PromptRecord("people at the ocean", ("person", "bird", "surfboard"), ("bird", "surfboard"))
    ]


def test_all_names_come_from_one_list(tmp_path):
    pairs = [("a sofa", "sofa"), ("a couch", "couch")]
    path = write(tmp_path, captions(*pairs))
    with pytest.raises(ValueError, match=r"entry 2: class_prompt 'couch' is no sequence of names"):
        read_dataset_diffusion(path)
    assert len(read_dataset_diffusion(path, ["sofa", "couch"])) == 2
    path = write(tmp_path, captions(("a couch", "couch"), ("a dog", "dog")))
    assert [record.classes for record in read_dataset_diffusion(path)] == [("couch",), ("dog",)]


def test_classes_that_are_given_go_before_the_official_lists(tmp_path):
    path = write(tmp_path, captions(("a red fox", "red fox")))
    assert read_dataset_diffusion(path, ["fox", "red fox"])[0].classes == ("red fox",)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("a dog", "found 'a dog'; needed"),
        ({}, "found no key; needed"),
        (
            {"prompt": "a dog", "classes": ["dog"]},
            "found keys 'prompt', 'classes'; needed .*an object a line .* goes into a .jsonl file",
        ),
        (captions(("a", "dog"))[0] | {"seed": 1}, "found keys 'filename', .*'seed'; needed"),
        ({"filename": "", "caption": 3, "class_prompt": "dog"}, "caption must be a text, found 3"),
        (captions(("a dog", " "))[0], "the class_prompt is empty"),
        (captions((" ", "dog"))[0], "not blank"),
        (captions(("a dog", "dog unicorn"))[0], "class_prompt 'dog unicorn' is no sequence of nam"),
    ],
)
def test_an_entry_of_another_shape_is_named_by_its_number(tmp_path, entry, message):
    path = write(tmp_path, [*captions(("a dog", "dog")), entry])
    with pytest.raises(ValueError, match=rf"prompts\.json: entry 2: .*{message}"):
        read_dataset_diffusion(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"dog": ["puppy"]}', "a list as Dataset Diffusion has it, .*; found an object with keys"),
        ("3", "found 3"),
        ("[]", "no prompt in the file"),
    ],
)
def test_another_json_file_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"prompts\.json: .*{message}"):
        read_dataset_diffusion(write(tmp_path, content))
