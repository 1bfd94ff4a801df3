"""Files of classes with synonyms or sub-classes."""

import pytest

from seediff_jax.prompts.class_files import is_class_file, read_classes, read_subclasses


def write(folder, content, name="classes.txt"):
    path = folder / name
    path.write_text(content)
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [("names.txt", True), ("a/b.TXT", True), ("k.json", True), ("dog", False), ("v2.0", False)],
)
def test_class_files_are_recognised_by_their_ending(text, expected):
    assert is_class_file(text) == expected


def test_a_line_is_a_class_and_words_follow_a_colon(tmp_path):
    path = write(tmp_path, "# mine\n\nsofa: couch,  love seat \n lamp\nperson:\n")
    assert read_classes(path) == {"sofa": ("couch", "love seat"), "lamp": None, "person": ()}
    assert [*read_classes(path)] == ["sofa", "lamp", "person"]


def test_a_json_object_of_lists_equals_the_text_form(tmp_path):
    path = write(tmp_path, '{"sofa": ["couch"], "lamp": []}', "c.json")
    assert read_classes(path) == {"sofa": ("couch",), "lamp": ()}


def test_a_class_may_be_its_own_sub_class(tmp_path):
    assert read_subclasses(write(tmp_path, "dog: dog, pug")) == {"dog": ("dog", "pug")}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Lamp: light", r"class 'Lamp' is already at .*classes\.txt:1"),
        (": couch", "class '' has no letter, digit or symbol"),
        ("sofa: couch,, settee", "class 'sofa': word '' has no letter, digit or symbol"),
        ("sofa: couch, Couch", "class 'sofa': 'couch' and 'Couch' are the same word"),
        ("sof\udce4", "not UTF-8"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, message):
    path = tmp_path / "classes.txt"
    path.write_bytes(b"lamp\n# x\n" + line.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=rf"classes\.txt:3: {message}"):
        read_classes(path)


@pytest.mark.parametrize("content", ["", "# nothing\n\n"])
def test_a_file_without_a_class_is_an_error(tmp_path, content):
    with pytest.raises(ValueError, match=r"classes\.txt: no class in the file"):
        read_classes(write(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"sofa": "couch"}', r"c\.json: 'sofa' must have a list of words, got 'couch'"),
        ('{"sofa": [1]}', r"'sofa' must have a list of words, got \[1\]"),
        ('{"sofa": [], "sofa": []}', "keys that are given twice: 'sofa'"),
        ('["sofa"]', "must hold a JSON object"),
        ("sofa", "not JSON"),
    ],
)
def test_another_json_file_is_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_classes(write(tmp_path, content, "c.json"))


def test_other_endings_and_absent_files_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"c\.csv: a file of classes must end in \.txt or \.json"):
        read_classes(write(tmp_path, "dog", "c.csv"))
    with pytest.raises(FileNotFoundError, match=r"absent\.txt: no such file"):
        read_classes(tmp_path / "absent.txt")


@pytest.mark.parametrize("line", ["dog", "dog:"])
def test_a_class_without_a_kind_is_an_error_in_a_file_of_sub_classes(tmp_path, line):
    with pytest.raises(ValueError, match="class 'dog' has no sub-class; write dog: one kind, an"):
        read_subclasses(write(tmp_path, line))
