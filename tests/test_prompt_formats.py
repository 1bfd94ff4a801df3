"""Entries of prompt files, format by format."""

import csv

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seediff_jax.prompt_formats import Entry, read_csv, read_jsonl, read_text


def write(folder, content, name="prompts.csv"):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_lines_of_text_are_prompts(tmp_path):
    path = write(tmp_path, "# pets\n\n a dog \n")
    assert list(read_text(path)) == [Entry(f"{path}:3", "a dog", None, ())]


def test_objects_may_have_classes_and_unnamed_classes(tmp_path):
    path = write(tmp_path, '\n{"prompt": "a dog"}\n{"prompt": "x", "unnamed_classes": ["sky"]}')
    first, second = read_jsonl(path)
    assert first == Entry(f"{path}:2", "a dog", None, [])
    assert second == Entry(f"{path}:3", "x", None, ["sky"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": NaN}', "NaN is no number of JSON"),
        ('{"prompt": "a", "prompt": "b"}', "keys that are given twice: 'prompt'"),
        ("[" * 10**5, "nested too deeply"),
    ],
)
def test_what_pythons_parser_would_take_or_choke_on_is_refused(tmp_path, line, message):
    with pytest.raises(ValueError, match=rf"prompts\.csv:1: not JSON \(.*{message}.*; needed"):
        list(read_jsonl(write(tmp_path, line)))


def test_columns_may_stand_in_any_order_and_capitals(tmp_path):
    path = write(tmp_path, "Classes , PROMPT\ndog;cat, a dog \n")
    assert list(read_csv(path)) == [Entry(f"{path}:2", "a dog", ("dog", "cat"), ())]


def test_places_are_those_of_the_first_line_of_a_row(tmp_path):
    path = write(tmp_path, 'prompt\n"a\r\ndog"\n\nb\n"say ""c"""\n')
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
            st.lists(st.text("abc d", min_size=1).map(str.strip).filter(bool)),
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
        ("a dog\n", ":1: the columns are a dog; needed is a header with prompt"),
        ("prompt;classes\na;b", ":1: the columns are prompt;classes; needed"),
        ("classes\ndog", ":1: the columns are classes; needed"),
        ("prompt,prompt\na,b", ":1: the columns are prompt, prompt; needed"),
        ("prompt,seed\na,1", ":1: the columns are prompt, seed; needed"),
        ("prompt,classes\n\na dog, a cat,dog", ":3: 3 cells for 2 columns; a prompt with a comma"),
        ("prompt,classes\na dog", ":2: 1 cells for 2 columns"),
        ('prompt\na\n"b\nc', r":3: not CSV \(unexpected end of data\)"),
        ('prompt\n"a" dog\n', r":2: not CSV \(',' expected after '\"'\); quotes"),
        (b"prompt\na d\xf6g\n", ":2: not UTF-8"),
    ],
)
def test_a_bad_table_is_named_by_file_and_line(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"prompts\.csv{message}"):
        list(read_csv(write(tmp_path, content)))


@pytest.mark.parametrize("content", ["", "\n\n", "prompt,classes\n"])
def test_a_table_without_rows_has_no_entries(tmp_path, content):
    assert list(read_csv(write(tmp_path, content))) == []
