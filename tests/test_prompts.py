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


def test_class_lists_are_public_here():
    assert len(prompts.VOC_CLASSES) + len(prompts.COCO_CLASSES) + len(prompts.SHAPES_CLASSES) == 108
    assert "person" in prompts.SYNONYMS


@pytest.mark.parametrize("classes", [prompts.VOC_CLASSES, prompts.COCO_CLASSES])
def test_a_made_prompt_names_its_class_and_no_other_of_the_list(tmp_path, classes):
    records = make_prompts(classes, "A long shot of a {class}")
    path = write(tmp_path, "\n".join(record.prompt for record in records))
    assert read_prompts(path, classes) == records


def test_a_text_file_has_a_prompt_a_line_and_its_classes_are_looked_up(tmp_path):
    path = write(tmp_path, "# pets\na dog and a woman\n\n  \n  a caterpillar under cats #1  \n")
    assert read_prompts(path, PETS) == [
        PromptRecord("a dog and a woman", ("dog", "person")),
        PromptRecord("a caterpillar under cats #1", ("cat",)),
    ]


def test_synonyms_given_are_used_in_every_format(tmp_path):
    hound = {"dog": ["hound"]}
    record = PromptRecord("a hound", ("dog",))
    assert read_prompts(write(tmp_path, "a hound"), PETS, hound) == [record]
    line = json.dumps({"prompt": "a hound", "classes": ["dog"]})
    assert read_prompts(write(tmp_path, line, "p.jsonl"), synonyms=hound) == [record]
    table = "prompt,classes\na hound,dog"
    assert read_prompts(write(tmp_path, table, "p.csv"), synonyms=hound) == [record]
    caption = json.dumps([{"filename": "", "caption": "a hound", "class_prompt": "dog"}])
    assert read_prompts(write(tmp_path, caption, "p.json"), synonyms=hound) == [record]


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


def test_a_table_has_the_same_in_columns(tmp_path):
    path = write(
        tmp_path,
        "prompt,classes,unnamed_classes\n"
        '"a dog, a cat",dog; cat,\n'
        "a puppy,,sky;sea\n"
        ",,\n"
        "a dog and a cat,,\n",
        "p.csv",
    )
    assert read_prompts(path, PETS) == [
        PromptRecord("a dog, a cat", ("dog", "cat")),
        PromptRecord("a puppy", ("dog", "sky", "sea"), ("sky", "sea")),
        PromptRecord("a dog and a cat", ("cat", "dog")),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a dog,cat,", "'a dog' does not name class 'cat'"),
        ("a dog,dog,dog", "classes 'dog' and 'dog' are the same name"),
        ("a puppy,,dog", "'a puppy' names 'dog', which is listed as an unnamed class"),
        (",dog,", "not blank"),
        ("a hat,,", "prompt 'a hat' has no classes; pass the classes to look for"),
        ("a dog,dog;,", "class '' has no letter"),
    ],
)
def test_a_bad_row_of_a_table_is_named_by_file_and_line(tmp_path, row, message):
    table = f'prompt,classes,unnamed_classes\n"a\ndog",dog,\n{row}\n'
    with pytest.raises(ValueError, match=rf"p\.csv:4: .*{message}"):
        read_prompts(write(tmp_path, table, "p.csv"))


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
    with pytest.raises(ValueError, match=r"p\.tsv: .* must end in \.txt, \.jsonl, \.csv or"):
        read_prompts(write(tmp_path, "a dog", "p.tsv"), PETS)
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        read_prompts(tmp_path / "absent.txt", PETS)


def test_classes_to_look_for_are_checked_before_the_file(tmp_path):
    with pytest.raises(ValueError, match="read_prompts: the list of classes is empty"):
        read_prompts(tmp_path / "absent.txt", [])
