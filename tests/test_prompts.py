"""Prompt records, templates and prompt files."""

import json

import pytest

from seediff_jax import prompts
from seediff_jax.prompts import PromptRecord, make_prompts, read_prompts

PETS = ("cat", "dog", "person")


def write(folder, content, name="prompts.txt"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_record_is_hashable_and_keeps_the_order_of_its_classes():
    record = PromptRecord("a dog and a cat", ["dog", "cat"])
    assert record.classes == ("dog", "cat")
    assert record in {PromptRecord("a dog and a cat", ("dog", "cat"))}


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


def test_class_lists_are_public_here():
    assert len(prompts.VOC_CLASSES) + len(prompts.COCO_CLASSES) + len(prompts.SHAPES_CLASSES) == 108
    assert "person" in prompts.SYNONYMS


@pytest.mark.parametrize(
    ("template", "name", "prompt"),
    [
        ("a photo of a {class}", "dog", "a photo of a dog"),
        ("a photo of a {class}", "aeroplane", "a photo of an aeroplane"),
        ("A {class}, outdoors", "umbrella", "An umbrella, outdoors"),
        ("An {class}", "bus", "A bus"),
        ("a {class}", "unicorn", "a unicorn"),
        ("a {class}", "hourglass", "an hourglass"),
        ("the {class}", "orange", "the orange"),
        ("banana {class}", "orange", "banana orange"),
        ("{class} {{raw}}; {class}", "ox", "ox {raw}; ox"),
    ],
)
def test_a_template_is_filled_with_the_right_article(template, name, prompt):
    assert make_prompts([name], template) == [PromptRecord(prompt, (name,))]


@pytest.mark.parametrize("classes", [prompts.VOC_CLASSES, prompts.COCO_CLASSES])
def test_a_made_prompt_names_its_class_and_no_other_of_the_list(tmp_path, classes):
    records = make_prompts(classes, "A long shot of a {class}")
    path = write(tmp_path, "\n".join(record.prompt for record in records))
    assert read_prompts(path, classes) == records


@pytest.mark.parametrize(
    "template", ["a photo", "", "a {}", "a {class} {color}", "a {class!r}", "a {class:>9}", "{cl"]
)
def test_a_template_without_the_class_or_with_another_field_is_an_error(template):
    with pytest.raises(ValueError, match="template"):
        make_prompts(["dog"], template)


@pytest.mark.parametrize("classes", [[], "dog", ["dog", "dog"]])
def test_templates_need_different_classes(classes):
    with pytest.raises(ValueError, match="make_prompts: .*class"):
        make_prompts(classes)


def test_a_text_file_has_a_prompt_a_line_and_its_classes_are_looked_up(tmp_path):
    path = write(tmp_path, "# pets\na dog and a woman\n\n  \n  a caterpillar under cats #1  \n")
    assert read_prompts(path, PETS) == [
        PromptRecord("a dog and a woman", ("dog", "person")),
        PromptRecord("a caterpillar under cats #1", ("cat",)),
    ]


def test_synonyms_given_are_used_in_both_formats(tmp_path):
    hound = {"dog": ["hound"]}
    record = PromptRecord("a hound", ("dog",))
    assert read_prompts(write(tmp_path, "a hound"), PETS, hound) == [record]
    line = json.dumps({"prompt": "a hound", "classes": ["dog"]})
    assert read_prompts(write(tmp_path, line, "p.jsonl"), synonyms=hound) == [record]


def test_jsonl_gives_the_classes_of_every_prompt_in_its_own_order(tmp_path):
    path = write(
        tmp_path,
        '{"prompt": "a dog and a cat", "classes": ["dog", "cat"]}\n\n'
        '{"classes": ["Zebra"], "prompt": "zebras\\u2028here"}\n{"prompt": "a dog, a cat"}\n',
        "p.JSONL",
    )
    assert read_prompts(path, PETS) == [
        PromptRecord("a dog and a cat", ("dog", "cat")),
        PromptRecord("zebras\u2028here", ("Zebra",)),
        PromptRecord("a dog, a cat", ("cat", "dog")),
    ]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
def test_byte_order_mark_and_line_endings_do_not_matter(tmp_path, mark, ending):
    lines = ["# ü", "a dog in a café", "a line\u2028separator and a cat"]
    content = mark + ending.join(line.encode() for line in lines) + ending
    expected = [PromptRecord(lines[1], ("dog",)), PromptRecord(lines[2], ("cat",))]
    assert read_prompts(write(tmp_path, content), PETS) == expected


GOOD = '{"prompt": "a dog", "classes": ["dog"]}\n\n'


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"prompt": "a dog"',
            r"not JSON .*, column 19\); needed \{\"prompt\": \"...\", \"classes",
        ),
        ("# comment", "not JSON"),
        ('["a dog"]', "not an object with a text as its prompt; needed"),
        ('{"classes": ["dog"]}', "not an object with a text as its prompt"),
        ('{"prompt": 3, "classes": ["dog"]}', "not an object with a text as its prompt"),
        ('{"prompt": " ", "classes": ["dog"]}', "not blank"),
        ('{"prompt": "a dog"}', "prompt 'a dog' has no classes; pass the classes"),
        ('{"prompt": "a dog", "classes": "dog"}', "classes must be a list of names, got 'dog'"),
        ('{"prompt": "a dog", "classes": null}', "classes must be a list of names, got None"),
        ('{"prompt": "a dog", "classes": []}', "the list of classes is empty"),
        ('{"prompt": "a dog", "classes": [7]}', r"list of names, got \[7\]|list of names"),
        ('{"prompt": "a dog", "classes": ["dog", "dog"]}', "same name"),
        ('{"prompt": "a dog", "classes": ["cat"]}', "'a dog' does not name class 'cat'"),
        ('{"prompt": "a dog", "classes": ["dog"], "seed": 1}', "unknown key 'seed'; needed"),
    ],
)
def test_a_broken_jsonl_line_is_named_by_file_and_number(tmp_path, line, message):
    path = write(tmp_path, GOOD + line + "\n", "p.jsonl")
    with pytest.raises(ValueError, match=rf"p\.jsonl:3: .*{message}"):
        read_prompts(path)


def test_a_text_line_without_a_class_is_named_by_file_and_number(tmp_path):
    path = write(tmp_path, "a dog\n# x\na hot dog\n")
    with pytest.raises(
        ValueError, match=r"prompts\.txt:3: .*'a hot dog' names none of the 3 .*cat"
    ):
        read_prompts(path, PETS)


def test_text_without_classes_to_look_for_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"prompts\.txt:1: prompt 'a dog' has no classes; pass"):
        read_prompts(write(tmp_path, "a dog"))


@pytest.mark.parametrize("content", ["", "# nothing\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_a_prompt_is_an_error(tmp_path, content):
    with pytest.raises(ValueError, match=r"prompts\.txt: no prompt in the file"):
        read_prompts(write(tmp_path, content), PETS)


@pytest.mark.parametrize("content", [b"a dog\na d\xf6g\n", b"a dog\n\xff\xfe\n"])
def test_text_that_is_not_utf8_is_an_error(tmp_path, content):
    with pytest.raises(ValueError, match=r"prompts\.txt:2: not UTF-8 .*save it as UTF-8"):
        read_prompts(write(tmp_path, content), PETS)


def test_other_file_endings_and_absent_files_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"p\.csv: a prompt file must end in \.txt or \.jsonl"):
        read_prompts(write(tmp_path, "a dog", "p.csv"), PETS)
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        read_prompts(tmp_path / "absent.txt", PETS)


def test_classes_to_look_for_are_checked_before_the_file(tmp_path):
    with pytest.raises(ValueError, match="read_prompts: the list of classes is empty"):
        read_prompts(tmp_path / "absent.txt", [])
