"""Prompt files: each format, and the records that are made of its entries."""

import csv
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seediff_jax.prompts.class_lists import COCO_CLASSES, VOC_CLASSES
from seediff_jax.prompts.prompt_files import (
    Entry,
    iterate_prompts,
    read_csv,
    read_jsonl,
    read_text,
)
from seediff_jax.prompts.prompt_record import PromptRecord
from seediff_jax.prompts.templates import make_prompts

PETS = ("cat", "dog", "person")


def write(folder, content, name="prompts.txt"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read_records(path, *classes_and_synonyms, **options):
    return list(iterate_prompts(path, *classes_and_synonyms, **options))


@pytest.mark.parametrize("classes", [VOC_CLASSES, COCO_CLASSES])
def test_a_made_prompt_names_its_class_and_no_other_of_the_list(tmp_path, classes):
    records = make_prompts(classes, "A long shot of a {class}")
    path = write(tmp_path, "\n".join(record.prompt for record in records))
    assert read_records(path, classes) == records


def test_a_text_file_has_one_prompt_per_line(tmp_path):
    path = write(tmp_path, "# pets\na dog and a woman\n\n  \n  a caterpillar under cats #1  \n")
    assert read_records(path, PETS) == [
        PromptRecord("a dog and a woman", ("dog", "person")),
        PromptRecord("a caterpillar under cats #1", ("cat",)),
    ]


def test_synonyms_are_used_in_every_format(tmp_path):
    hound = {"dog": ["hound"]}
    record = PromptRecord("a hound", ("dog",))
    assert read_records(write(tmp_path, "a hound"), PETS, hound) == [record]
    line = json.dumps({"prompt": "a hound", "classes": ["dog"]})
    assert read_records(write(tmp_path, line, "p.jsonl"), synonyms=hound) == [record]
    table = "prompt,classes\na hound,dog"
    assert read_records(write(tmp_path, table, "p.csv"), synonyms=hound) == [record]
    caption = json.dumps([{"filename": "", "caption": "a hound", "class_prompt": "dog"}])
    assert read_records(write(tmp_path, caption, "p.json"), synonyms=hound) == [record]


def test_jsonl_keeps_the_order_of_classes_of_each_prompt(tmp_path):
    path = write(
        tmp_path,
        '{"prompt": "a dog and a cat", "classes": ["dog", "cat"]}\n\n'
        '{"classes": ["Zebra"], "prompt": "zebras\\u2028here"}\n{"prompt": "a dog, a cat"}\n',
        "p.JSONL",
    )
    assert read_records(path, PETS) == [
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
            r"not JSON .*column 19.*\); expected \{\"prompt\": \"...\", \"classes",
        ),
        ("# comment", "not JSON"),
        ('["a dog"]', "not an object with a text as its prompt; expected"),
        ('{"classes": ["dog"]}', "not an object with a text as its prompt"),
        ('{"prompt": 3, "classes": ["dog"]}', "not an object with a text as its prompt"),
        ('{"prompt": " ", "classes": ["dog"]}', "not blank"),
        ('{"prompt": "a dog"}', "prompt 'a dog' has no classes; pass the classes"),
        ('{"prompt": "a dog", "classes": "dog"}', "classes must be a list of names, got 'dog'"),
        ('{"prompt": "a dog", "classes": []}', "the list of classes is empty"),
        ('{"prompt": "a dog", "classes": [7]}', r"list of names, got \[7\]|list of names"),
        ('{"prompt": "a dog", "classes": ["dog", "dog"]}', "same name"),
        ('{"prompt": "a dog", "classes": ["cat"]}', "'a dog' does not name class 'cat'"),
        ('{"prompt": "a dog", "classes": ["dog"], "seed": 1}', "unknown key 'seed'; expected"),
    ],
)
def test_a_broken_jsonl_line_is_named_by_file_and_number(tmp_path, line, message):
    path = write(tmp_path, GOOD + line + "\n", "p.jsonl")
    with pytest.raises(ValueError, match=rf"p\.jsonl:3: .*{message}"):
        read_records(path)


def test_csv_gives_the_same_records_as_jsonl(tmp_path):
    path = write(
        tmp_path,
        "prompt,classes,unnamed_classes\n"
        '"a dog, a cat",dog; cat,\n'
        "a puppy,,sky;sea\n"
        ",,\n"
        "a dog and a cat,,\n",
        "p.csv",
    )
    assert read_records(path, PETS) == [
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
        ("a dog,dog;,", "class '' has no letter, digit or symbol"),
    ],
)
def test_a_bad_csv_row_is_named_by_file_and_line(tmp_path, row, message):
    table = f'prompt,classes,unnamed_classes\n"a\ndog",dog,\n{row}\n'
    with pytest.raises(ValueError, match=rf"p\.csv:4: .*{message}"):
        read_records(write(tmp_path, table, "p.csv"))


def test_a_text_line_without_a_class_is_named_by_file_and_number(tmp_path):
    path = write(tmp_path, "a dog\n# x\na hot dog\n")
    with pytest.raises(
        ValueError, match=r"prompts\.txt:3: .*'a hot dog' names none of the 3 .*cat"
    ):
        read_records(path, PETS)


def test_text_without_classes_to_look_for_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"prompts\.txt:1: prompt 'a dog' has no classes; pass"):
        read_records(write(tmp_path, "a dog"))


@pytest.mark.parametrize("content", ["", "# nothing\n\n", b"\xef\xbb\xbf"])
def test_a_file_without_a_prompt_is_an_error(tmp_path, content):
    with pytest.raises(ValueError, match=r"prompts\.txt: no prompt in the file"):
        read_records(write(tmp_path, content), PETS)


@pytest.mark.parametrize("content", [b"a dog\na d\xf6g\n", b"a dog\n\xff\xfe\n"])
def test_text_that_is_not_utf8_is_an_error(tmp_path, content):
    with pytest.raises(ValueError, match=r"prompts\.txt:2: not UTF-8 .*save it as UTF-8"):
        read_records(write(tmp_path, content), PETS)


def test_other_file_endings_and_absent_files_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"p\.tsv: .* must end in \.txt, \.jsonl, \.csv or"):
        read_records(write(tmp_path, "a dog", "p.tsv"), PETS)
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        read_records(tmp_path / "absent.txt", PETS)


def test_classes_to_look_for_are_checked_before_the_file(tmp_path):
    with pytest.raises(ValueError, match="iterate_prompts: the list of classes is empty"):
        read_records(tmp_path / "absent.txt", [])


# Entries, format by format


def test_lines_of_text_are_prompts(tmp_path):
    path = write(tmp_path, "# pets\n\n a dog \n", "prompts.csv")
    assert list(read_text(path)) == [Entry(f"{path}:3", "a dog", None, ())]


def test_objects_may_have_classes_and_unnamed_classes(tmp_path):
    path = write(
        tmp_path,
        '\n{"prompt": "a dog"}\n{"prompt": "x", "unnamed_classes": ["sky"]}',
        "prompts.csv",
    )
    first, second = read_jsonl(path)
    assert first == Entry(f"{path}:2", "a dog", None, ())
    assert second == Entry(f"{path}:3", "x", None, ["sky"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": NaN}', "NaN is not a number of JSON"),
        ('{"prompt": "a", "prompt": "b"}', "keys that are given twice: 'prompt'"),
        ("[" * 10**5, "nested too deeply"),
    ],
)
def test_json_that_pythons_parser_accepts_or_fails_on_is_refused(tmp_path, line, message):
    with pytest.raises(ValueError, match=rf"prompts\.csv:1: not JSON \(.*{message}.*; expected"):
        list(read_jsonl(write(tmp_path, line, "prompts.csv")))


def test_columns_may_be_in_any_order_and_capitals(tmp_path):
    path = write(tmp_path, "Classes , PROMPT\ndog;cat, a dog \n", "prompts.csv")
    assert list(read_csv(path)) == [Entry(f"{path}:2", "a dog", ("dog", "cat"), ())]


def test_places_are_those_of_the_first_line_of_a_row(tmp_path):
    path = write(tmp_path, 'prompt\n"a\r\ndog"\n\nb\n"say ""c"""\n', "prompts.csv")
    assert [(entry.place, entry.prompt) for entry in read_csv(path)] == [
        (f"{path}:2", "a\ndog"),
        (f"{path}:5", "b"),
        (f"{path}:6", 'say "c"'),
    ]


@settings(derandomize=True, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), min_size=1),
            st.lists(st.text("abc d").filter(str.strip).map(str.strip)),
        )
    )
)
def test_what_the_csv_module_writes_is_read(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "prompts.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "classes"])
        writer.writerows([prompt, ";".join(names)] for prompt, names in rows)
    expected = [
        (prompt.strip(), tuple(names) or None) for prompt, names in rows if prompt.strip() or names
    ]
    assert [(entry.prompt, entry.classes) for entry in read_csv(path)] == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a dog\n", ":1: the columns are a dog; the header needs prompt"),
        ("prompt;classes\na;b", ":1: the columns are prompt;classes; the header needs"),
        ("classes\ndog", ":1: the columns are classes; the header needs"),
        ("prompt,prompt\na,b", ":1: the columns are prompt, prompt; the header needs"),
        ("prompt,seed\na,1", ":1: the columns are prompt, seed; the header needs"),
        ("prompt,classes\n\na dog, a cat,dog", ":3: 3 cells for 2 columns; a prompt with a comma"),
        ("prompt,classes\na dog", ":2: 1 cells for 2 columns"),
        ('prompt\na\n"b\nc', r":3: not CSV \(unexpected end of data\)"),
        ('prompt\n"a" dog\n', r":2: not CSV \(',' expected after '\"'\); quotes"),
        (b"prompt\na d\xf6g\n", ":2: not UTF-8"),
    ],
)
def test_a_bad_table_is_named_by_file_and_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"prompts\.csv{message}"):
        list(read_csv(write(tmp_path, content, "prompts.csv")))


@pytest.mark.parametrize("content", ["", "\n\n", "prompt,classes\n"])
def test_a_table_without_rows_has_no_entries(tmp_path, content):
    assert list(read_csv(write(tmp_path, content, "prompts.csv"))) == []


# Dataset Diffusion


def write_json(folder, entries):
    return write(
        folder, entries if isinstance(entries, str) else json.dumps(entries), "prompts.json"
    )


def captions(*pairs):
    return [
        {"filename": f"{i}.jpg", "caption": caption, "class_prompt": names}
        for i, (caption, names) in enumerate(pairs)
    ]


def test_the_caption_is_the_prompt_and_the_class_prompt_its_classes(tmp_path):
    path = write_json(
        tmp_path,
        captions(
            ("a baby in a yellow toy car; person car", "person car"),
            ("a television on a table; tv monitor dining table", "tv monitor dining table"),
            ("a woman and a girl on a couch; person person sofa", "person person sofa"),
        ),
    )
    assert read_records(path) == [
        PromptRecord("a baby in a yellow toy car; person car", ("person", "car")),
        PromptRecord(
            "a television on a table; tv monitor dining table", ("tvmonitor", "diningtable")
        ),
        PromptRecord("a woman and a girl on a couch; person person sofa", ("person", "sofa")),
    ]


def test_a_class_that_the_caption_does_not_name_is_an_unnamed_one_and_comes_last(tmp_path):
    path = write_json(tmp_path, captions(("people at the ocean", "bird person surfboard")))
    assert read_records(path) == [
        PromptRecord("people at the ocean", ("person", "bird", "surfboard"), ("bird", "surfboard"))
    ]


def test_all_names_come_from_one_list(tmp_path):
    pairs = [("a sofa", "sofa"), ("a couch", "couch")]
    path = write_json(tmp_path, captions(*pairs))
    with pytest.raises(ValueError, match=r"entry 2: class_prompt 'couch' is not a sequence"):
        read_records(path)
    assert len(read_records(path, ["sofa", "couch"])) == 2
    path = write_json(tmp_path, captions(("a couch", "couch"), ("a dog", "dog")))
    assert [record.classes for record in read_records(path)] == [("couch",), ("dog",)]


def test_given_classes_take_precedence_over_official_lists(tmp_path):
    path = write_json(tmp_path, captions(("a red fox", "red fox")))
    assert read_records(path, ["fox", "red fox"])[0].classes == ("red fox",)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("a dog", "found 'a dog'; expected"),
        ({}, "found no key; expected"),
        (
            {"prompt": "a dog", "classes": ["dog"]},
            "found keys 'prompt', 'classes'; expected .*one object per line .* goes into a .jsonl",
        ),
        (captions(("a", "dog"))[0] | {"seed": 1}, "found keys 'filename', .*'seed'; expected"),
        ({"filename": "", "caption": 3, "class_prompt": "dog"}, "caption must be a text, found 3"),
        (captions(("a dog", " "))[0], "the class_prompt is empty"),
        (captions((" ", "dog"))[0], "not blank"),
        (
            captions(("a dog", "dog unicorn"))[0],
            "class_prompt 'dog unicorn' is not a seq",
        ),
    ],
)
def test_an_entry_of_another_form_is_named_by_its_number(tmp_path, entry, message):
    path = write_json(tmp_path, [*captions(("a dog", "dog")), entry])
    with pytest.raises(ValueError, match=rf"prompts\.json: entry 2: .*{message}"):
        read_records(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ('{"dog": ["puppy"]}', "a list as of Dataset Diffusion, .*; found an object with keys"),
        ("3", "found 3"),
        ("[]", "no prompt in the file"),
    ],
)
def test_another_json_file_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"prompts\.json.* {message}"):
        read_records(write_json(tmp_path, content))
