"""Class names and prompt files that are careless, damaged or hostile."""

import json
import os
import unicodedata

import pytest

from seediff_jax.errors import UserError
from seediff_jax.prompts import mentions
from seediff_jax.prompts.class_lists import COCO_CLASSES, SHAPES_CLASSES, VOC_CLASSES
from seediff_jax.prompts.mentions import MentionFinder, mention_finder
from seediff_jax.prompts.names import clean_name, name_key
from seediff_jax.prompts.prompt_files import iterate_prompts
from seediff_jax.prompts.prompt_record import PromptRecord, PromptTable
from seediff_jax.prompts.prompt_source import make_plan
from seediff_jax.prompts.settings import PromptSource
from seediff_jax.prompts.tokenizer import load_tokenizer
from tests.helpers.tokenizer_folders import write_tokenizer


def write_lines(folder, *entries, name="p.jsonl"):
    path = folder / name
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def read_records(path, *classes_and_synonyms, **options):
    return list(iterate_prompts(path, *classes_and_synonyms, **options))


def plan_of(**options):
    return make_plan(PromptSource(model="m", **options))


# One class, one id


@pytest.mark.parametrize("spellings", [("star", "Star", " star"), ("STAR", "star\t", "stars"[:4])])
def test_a_class_in_several_spellings_has_one_id(tmp_path, spellings):
    entries = [{"prompt": f"a {name} here", "classes": [name]} for name in spellings]
    plan, names = plan_of(prompts=write_lines(tmp_path, *entries))
    assert names == SHAPES_CLASSES
    assert [record.classes for record in plan.records] == [("star",)] * 3


def test_the_first_spelling_is_used_if_no_official_list_has_all_classes(tmp_path):
    entries = [
        {"prompt": "a Red-Fox", "classes": ["Red-Fox"]},
        {"prompt": "a red fox", "classes": ["red fox"], "unnamed_classes": ["SKY"]},
        {"prompt": "the sky", "classes": ["sky"]},
    ]
    plan, names = plan_of(prompts=write_lines(tmp_path, *entries))
    assert names == ("Red-Fox", "SKY")
    assert [record.classes for record in plan.records] == [("Red-Fox",), names, ("SKY",)]
    assert plan.records[1].unnamed == ("SKY",)


def test_names_of_a_class_file_take_precedence_over_those_of_prompts(tmp_path):
    path = write_lines(tmp_path, "Star", name="c.txt")
    entry = {"prompt": "a star", "classes": ["star"]}
    plan, names = plan_of(prompts=write_lines(tmp_path, entry), classes=(path,))
    assert names == ("Star",) and plan.records[0].classes == ("Star",)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("Star", "ring"), SHAPES_CLASSES),
        (("DOG", "Potted Plant"), VOC_CLASSES),
        (("dog", "potted plant"), COCO_CLASSES),  # the list that spells them like this
        (("Dog", "zebra"), COCO_CLASSES),
    ],
)
def test_the_official_list_is_found_in_any_capitals(tmp_path, classes, expected):
    entries = [{"prompt": f"a {name}", "classes": [name]} for name in classes]
    plan, names = plan_of(prompts=write_lines(tmp_path, *entries))
    assert names == expected
    assert {name for record in plan.records for name in record.classes} <= set(expected)


@pytest.mark.parametrize(("name", "expected"), [("COCO", COCO_CLASSES), (" Voc ", VOC_CLASSES)])
def test_a_list_is_named_in_any_capitals(name, expected):
    assert plan_of(classes=(name,))[1] == expected


def test_names_that_differ_in_more_than_spelling_are_different_classes():
    groups = (
        ["C", "C++", "C#"],
        ["1.5 inch", "15 inch"],
        ["की", "का"],
        ["猫", "熊猫"],
        ["R&B", "RB"],
    )
    for names in groups:
        assert len({name_key(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    "name",
    ["star\nring", "star\r", "a\u2028b", "a\x85b", "a\x1cb", "\x1b[31mred", "a\x00", "x" * 201],
)
def test_a_name_with_line_breaks_or_without_letters_is_refused(tmp_path, name):
    entry = {"prompt": f"a {name}", "classes": [name]}
    with pytest.raises(UserError, match=r"p\.jsonl:1: .*class .*(line break|characters)") as caught:
        plan_of(prompts=write_lines(tmp_path, entry))
    assert str(caught.value).isprintable()
    with pytest.raises(UserError, match="--classes"):
        plan_of(classes=(name, "dog"))


# Any name that stands in the prompt is found

NAMES = """carpenter's kit|carpenter’s kit|carpenterʼs kit|bat (animal)|St. Bernard|C++
C#|AT&T phone|salt & pepper|M&M's|rock 'n' roll|jack-o'-lantern
A-frame house|a cappella singer|x‑ray|x–ray|x—ray|x−ray|Dr. Pepper (can)
50% sign|$100 bill|3.5 inch disk|café|naïve|Ångström|हिन्दी|किताब|กล้วย|猫
ネコ|고양이|кошка|ΣΚΎΛΟΣ|كلب|قِطّة|می‌خواهم|חתול|kedi İ|straße|❤️|👩‍🚀|👍🏽
Yahoo!|“quoted” thing|hot dog, mustard|dog/cat|cat: black|[bracket] thing
under_score|mother-in-law's tongue|'tis|100,000 bill|person (man)|#hashtag
soft\u00adhyphen|zero\u200bwidth|བོད་ཡིག|မြန်မာ|ខ្មែរ|தமிழ்|አማርኛ|d’Artagnan
ḍ̇og|z̴a̷l̸g̵o̶"""
NAMES = NAMES.replace("\n", "|").split("|")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_of_any_script_and_punctuation_is_found(name, form):
    written = unicodedata.normalize(form, name)
    plan, names = plan_of(classes=(written, "zzz"), unnamed_classes=("yyy",))
    assert names[0] == clean_name(name)
    assert plan.records[0].named == (names[0],)
    for prompt in (
        f"a photo of a {name}",
        f"({name})",
        f"{name.upper()}!",
        f"sky and {name} and x",
    ):
        for text in (unicodedata.normalize(each, prompt) for each in ("NFC", "NFD")):
            spans = mention_finder().find(text, [written])[written]
            assert len(spans) == 1, text


@pytest.mark.parametrize(
    ("prompt", "name", "found"),
    [
        ("a carpenters kit", "carpenter's kit", "carpenters kit"),
        ("a st bernard", "St. Bernard", "st bernard"),
        ("black and white cat", "black & white cat", "black and white cat"),
        ("一只猫在沙发上", "猫", "猫"),
        ("a bat, animal", "bat (animal)", None),
        ("it was hot, dog", "hot dog", None),
        ("the dog's bone", "dog", "dog"),
        ("a frame house", "aframe", None),
        ("2 5 inch", "25 inch", None),
    ],
)
def test_punctuation_of_a_name_may_be_omitted_but_not_added(prompt, name, found):
    spans = mention_finder().find(prompt, [name])[name]
    assert [prompt[a:b] for a, b in spans] == ([found] if found else [])


# Texts that are not UTF-8, and JSON of another shape


@pytest.mark.parametrize(
    "line",
    [
        r'{"prompt": "a star \ud83d", "classes": ["star"]}',
        r'{"prompt": "a star", "classes": ["star", "\ud83d"]}',
        r'{"prompt": "a star", "classes": ["star"], "unnamed_classes": ["x\udc80"]}',
    ],
)
def test_half_a_character_in_json_is_refused(tmp_path, line):
    with pytest.raises(UserError, match=r"p\.jsonl:1: .*is not UTF-8"):
        read_records(write_lines(tmp_path, line))


@pytest.mark.parametrize("field", ["classes", "unnamed_classes", "templates"])
def test_arguments_that_are_not_utf8_are_refused(field):
    texts = {"classes": ("dog", "c\udce9")} | {field: ("{class} \udce9",)}
    with pytest.raises(UserError, match="is not UTF-8"):
        plan_of(**texts)


def test_half_a_character_is_refused_before_the_tokenizer(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "small"))
    with pytest.raises(UserError, match="is not UTF-8"):
        tokenizer.encode(["a \ud83d"])


def test_a_prompt_that_ends_in_a_control_character_is_too_long_in_one_line(tmp_path):
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "small"))
    for end in ("\x1c", "\x1f", "\x00", "\u2028"):
        with pytest.raises(UserError, match="first word that is lost"):
            tokenizer.encode(["a " * 75 + end * 40 + "dog " * 3 + end])


def test_null_equals_an_absent_key(tmp_path):
    entry = {"prompt": "a star", "classes": None, "unnamed_classes": None}
    assert read_records(write_lines(tmp_path, entry), ["star"]) == [
        PromptRecord("a star", ("star",))
    ]


@pytest.mark.parametrize("names", ["star", 3, {"star": 1}, ["star", 3], [["star"]], True, [None]])
@pytest.mark.parametrize("key", ["classes", "unnamed_classes"])
def test_names_that_are_not_a_list_of_texts_are_refused(tmp_path, key, names):
    entry = {"prompt": "a star", "classes": ["star"], key: names}
    with pytest.raises(UserError, match=rf"p\.jsonl:1: {key} must be a list of names"):
        read_records(write_lines(tmp_path, entry))


@pytest.mark.parametrize("depth", [50, 900, 10**5])
def test_deep_nesting_is_refused_anywhere(tmp_path, depth):
    deep = "[" * depth + "]" * depth
    for line in (deep, f'{{"prompt": "a", "classes": {deep}}}', f'{{"prompt": {deep}}}'):
        with pytest.raises(UserError, match=r"p\.jsonl:1: ") as caught:
            read_records(write_lines(tmp_path, line))
        assert len(str(caught.value)) < 1000


# Messages


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "prompt," + ",".join(f"\x1b[31m{k}" for k in range(10**4))),
        ("p.jsonl", json.dumps({"prompt": "a", "classes": ["\x1b[2J" + "x" * 10**5]})),
        ("p.jsonl", json.dumps({"prompt": "word " * 10**5, "classes": ["dog"]})),
        ("p.jsonl", json.dumps({"prompt": "a", "\x1b]0;t\x07" * 10**4: 1})),
        ("p.jsonl", json.dumps(["\x1b" * 10**5])),
        ("p.json", json.dumps({f"k\x1b{k}": 1 for k in range(10**4)})),
        ("p.json", json.dumps([{"filename": "", "caption": "a", "class_prompt": "\x1b" * 10**5}])),
    ],
)
def test_messages_are_short_and_safe_for_a_terminal(tmp_path, name, content):
    with pytest.raises(UserError) as caught:
        read_records(write_lines(tmp_path, content, name=name))
    assert len(str(caught.value)) < 2000 and str(caught.value).isprintable()


# Files that are not files, and long ones


@pytest.mark.parametrize("name", ["p.txt", "p.jsonl", "p.csv", "p.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_not_a_file_is_refused_at_once(tmp_path, name, kind):
    path = tmp_path / name
    {"pipe": os.mkfifo, "device": lambda p: p.symlink_to("/dev/zero"), "folder": os.mkdir}[kind](
        path
    )
    with pytest.raises(UserError, match="is not a file"):
        read_records(path, ["dog"])


def test_an_endless_line_is_refused(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes(b"a dog\n" + b"word " * 300_000)
    with pytest.raises(UserError, match=r"p\.txt:2: the line has more than 1048576 bytes"):
        read_records(path, ["dog"])


def test_work_grows_with_the_words_of_a_prompt_and_not_with_their_square(monkeypatch):
    calls = []
    join = mentions.join_keys
    monkeypatch.setattr(mentions, "join_keys", lambda *keys: calls.append(1) or join(*keys))
    finder = MentionFinder()
    counts = []
    for words in (1000, 4000):
        calls.clear()
        finder.find("a corn hot tv do dog " * words, ["dog", "tv monitor"])
        counts.append(len(calls))
    assert counts[1] == pytest.approx(4 * counts[0], rel=0.01)


def test_work_for_a_prompt_does_not_grow_with_the_number_of_classes():
    classes = [f"thing{k}" for k in range(5000)]
    finder = MentionFinder()
    finder.learn(classes)
    looked_at = []

    class Counted(frozenset):
        def __contains__(self, name):
            looked_at.append(name)
            return super().__contains__(name)

        def __iter__(self):
            raise AssertionError("all classes were gone through")

    assert finder.find_named("a thing7 and a thing4999", Counted(classes)) == {
        "thing7",
        "thing4999",
    }
    assert len(looked_at) < 10


def test_more_classes_than_ids_are_refused_before_the_rest_is_read(tmp_path):
    entries = [{"prompt": f"a thing{k}", "classes": [f"thing{k}"]} for k in range(300)]
    with pytest.raises(UserError, match="255 classes or more, but a mask has ids for 254"):
        plan_of(prompts=write_lines(tmp_path, *entries, "not JSON"))


def test_a_prompt_table_equals_its_records():
    records = [PromptRecord("a猫", ("猫",)), PromptRecord("b", ("b", "sky"), ("sky",))] * 3
    table = PromptTable(records)
    assert table == records and table[-1] == records[1] and table[1:3] == tuple(records[1:3])
    assert len(table.class_lists) == 2
    rows = [[r.prompt, list(r.named), list(r.unnamed)] for r in records]
    assert [json.loads(row) for row in table.json_rows()] == rows
    with pytest.raises(IndexError):
        table[6]
