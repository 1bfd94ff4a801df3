"""What counts as a mention of a class in a prompt."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seediff_jax.prompts.class_lists import COCO_CLASSES, LOOK_ALIKES, SHAPES_CLASSES, VOC_CLASSES
from seediff_jax.prompts.mentions import mention_finder, split_names
from seediff_jax.prompts.names import find_entry, name_key


def mentioned(prompt, classes, synonyms=None):
    """The words of the prompt that name each class."""
    found = mention_finder(synonyms).find(prompt, classes)
    return {name: [prompt[start:end] for start, end in spans] for name, spans in found.items()}


@pytest.mark.parametrize("classes", [VOC_CLASSES, COCO_CLASSES, SHAPES_CLASSES])
def test_every_class_is_found_alone_among_all_of_its_list(classes):
    for name in classes:
        for prompt in (f"a photo of a {name}.", f"{name.upper()}!"):
            found = {other for other, words in mentioned(prompt, classes).items() if words}
            assert found == {name}, prompt


@pytest.mark.parametrize(
    ("name", "prompt", "words"),
    [
        ("pottedplant", "a potted plant", ["potted plant"]),
        ("potted plant", "a pottedplant", ["pottedplant"]),
        ("potted plant", "Potted-Plants, potted_plant", ["Potted-Plants", "potted_plant"]),
        ("tvmonitor", "a TV monitor and a tv/monitor", ["TV monitor", "tv/monitor"]),
        ("tv monitor", "a tvmonitor", ["tvmonitor"]),
        ("diningtable", "a dining\n  table", ["dining\n  table"]),
        ("dining table", "diningtables", ["diningtables"]),
        ("aeroplane", "an airplane, a plane", ["airplane", "plane"]),
        ("airplane", "an aeroplane", ["aeroplane"]),
        ("couch", "a red sofa", ["sofa"]),
        ("motorbike", "a motor bike or motorcycle", ["motor bike", "motorcycle"]),
        ("tv", "a television", ["television"]),
        ("hair drier", "a hairdryer", ["hairdryer"]),
    ],
)
def test_spellings_in_one_word_or_two_and_of_both_data_sets_are_found(name, prompt, words):
    assert mentioned(prompt, [name]) == {name: words}


@pytest.mark.parametrize(
    ("name", "plural"),
    [
        *(("dog", "dogs"), ("bus", "buses"), ("box", "boxes"), ("bench", "benches")),
        *(("knife", "knives"), ("person", "people"), ("person", "men"), ("person", "women")),
        *(("person", "children"), ("person", "babies"), ("sheep", "sheep"), ("mouse", "mice")),
        *(("wine glass", "wine glasses"), ("toothbrush", "toothbrushes"), ("cow", "calves")),
        *(("cow", "oxen"), ("dog", "puppies"), ("person", "policemen"), ("skis", "ski")),
    ],
)
def test_plurals_are_found(name, plural):
    assert mentioned(f"Three {plural}.", [name]) == {name: [plural]}


def test_every_mention_counts():
    prompt = "A man, two dogs and a puppy; the women look at the Dog"
    expected = {"person": ["man", "women"], "dog": ["dogs", "puppy", "Dog"]}
    assert mentioned(prompt, ["person", "dog"]) == expected


@pytest.mark.parametrize(
    "prompt",
    [
        "a category of caterpillars, concatenated",
        "bobcats3 and cat5 and 2cats",
        "a photo",
        "",
    ],
)
def test_a_name_inside_another_word_is_not_a_mention(prompt):
    assert mentioned(prompt, ["cat"]) == {"cat": []}


@pytest.mark.parametrize(
    "prompt", ["(cat)", '"cat"!', "a cat's tail", "cat,dog", "cat-like", "cat"]
)
def test_a_name_next_to_punctuation_is_found(prompt):
    assert mentioned(prompt, ["cat"]) == {"cat": ["cat"]}


def test_words_separated_by_punctuation_are_not_a_compound():
    assert mentioned("it was hot, dog days", ["hot dog", "dog"]) == {"hot dog": [], "dog": ["dog"]}


def test_an_article_is_not_part_of_a_name():
    assert mentioned("a corn field", ["acorn"]) == {"acorn": []}


def test_the_longest_name_wins():
    classes = ["bear", "teddy bear", "dog", "hot dog"]
    prompt = "a teddy bear and a bear eat a hot dog and a hotdog with the dog"
    assert mentioned(prompt, classes) == {
        "bear": ["bear"],
        "teddy bear": ["teddy bear"],
        "dog": ["dog"],
        "hot dog": ["hot dog", "hotdog"],
    }
    # A tennis ball is a ball, unless somebody asks for tennis balls.
    assert mentioned("a tennis ball", ["ball"]) == {"ball": ["ball"]}
    both = mentioned("a tennis ball", ["ball", "tennis ball"])
    assert both == {"ball": [], "tennis ball": ["tennis ball"]}


@pytest.mark.parametrize("compound", LOOK_ALIKES)
def test_a_look_alike_does_not_name_its_last_word(compound):
    *_, last = compound.split()
    assert mentioned(f"a {compound}", [last]) == {last: []}
    assert mentioned(f"a {compound}", [compound]) == {compound: [compound]}


def test_a_look_alike_counts_if_synonyms_say_so():
    assert mentioned("a hot dog", ["dog"], {"dog": ["hot dog"]}) == {"dog": ["hot dog"]}


def test_given_synonyms_replace_those_of_their_class_only():
    prompt = "a hound, a puppy and a kitten"
    given = {"Dog": ["hound"], "horse": ["mare"]}
    assert mentioned(prompt, ["dog", "cat"], given) == {"dog": ["hound"], "cat": ["kitten"]}
    assert mentioned("a man", ["person"], {"person": []}) == {"person": []}


def test_a_class_name_takes_precedence_over_anothers_synonym():
    expected = {"person": ["woman"], "man": ["man"]}
    assert mentioned("a man and a woman", ["person", "man"]) == expected
    expected = {"sofa": ["sofa"], "couch": ["couch"]}
    assert mentioned("a sofa and a couch", ["sofa", "couch"]) == expected


def test_a_word_that_two_classes_claim_is_an_error():
    with pytest.raises(ValueError, match="'sofa' and 'couch' both claim 'settee' in .*'a settee'"):
        mention_finder().find("a settee", ["sofa", "couch"])


def test_accents_match_however_they_are_composed():
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    for prompt, name in [(composed, decomposed), (decomposed, composed)]:
        assert mention_finder().find(f"a {prompt}", [name]) == {name: [(2, 6)]}
    assert mention_finder().find(f"a {decomposed}", ["cafe"]) == {"cafe": []}


@pytest.mark.parametrize(
    ("prompt", "classes", "message"),
    [
        ("a photo of a cat", ["cat", "dog"], "'a photo of a cat' does not name class 'dog'; write"),
        ("a dinner", ["dining table"], r"class 'dining table'; write"),
        ("a table", ["diningtable"], r"'diningtable' \(nearest there: 'table'\)"),
        ("a girafe", ["giraffe"], r"'giraffe' \(nearest there: 'girafe'\)"),
        ("a hot dog", ["dog"], r"'dog' \('hot dog' there names something else\)"),
        ("teddy bears", ["bear", "teddy bear"], r"\('teddy bears' there names class 'teddy bear'"),
        ("a man", ["person", "man"], r"'person' \('man' there names class 'man'\)"),
        ("a hound", ["dog"], r"pass synonyms=\{'dog': \[\.\.\.\]\}"),
    ],
)
def test_an_absent_class_is_reported_with_the_prompt_and_advice(prompt, classes, message):
    with pytest.raises(ValueError, match=message):
        mention_finder().require(prompt, classes)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([], "prompt 'a dog': the list of classes is empty"),
        ("dog", "must be a list of names, got 'dog'"),
        (["dog", 3], "must be a list of names"),
        (["dog", " "], "class '' has no letter"),
        (["dog", "Dog"], "classes 'dog' and 'Dog' are the same name"),
        (["potted plant", "pottedplant"], "are the same name"),
    ],
)
def test_lists_of_classes_are_checked(classes, message):
    with pytest.raises(ValueError, match=message):
        mention_finder().find("a dog", classes)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("hound", " must be a list of words, got 'hound'"),
        ([1], " must be a list of words"),
        (["hound", "?"], r": '\?' has no letter, digit or symbol"),
        (["h" * 201], ": 'h+' has 201 characters; at most 200 are allowed"),
    ],
)
def test_synonyms_are_checked(words, message):
    with pytest.raises(ValueError, match=f"^synonyms of 'dog'{message}"):
        mention_finder({"dog": words})


def test_a_table_is_looked_up_in_any_spelling():
    table = {"potted plant": ["fern"], "lamp": []}
    assert find_entry("potted plant", table) == find_entry("PottedPlant", table) == ("fern",)
    assert find_entry("Lamp", table) == () and find_entry("plant", table) is None


def test_names_with_the_same_letters_and_digits_are_equal():
    assert name_key("Potted-Plant 2") == "pottedplant2"
    assert name_key("cafe\u0301") == name_key("caf\u00e9") and name_key("?!") == ""


def by_key(classes):
    return {name_key(name): name for name in classes}


@pytest.mark.parametrize(
    ("text", "classes", "names"),
    [
        ("person car", VOC_CLASSES, ("person", "car")),
        ("tv monitor dining table", VOC_CLASSES, ("tvmonitor", "diningtable")),
        ("person person sofa", VOC_CLASSES, ("person", "sofa")),
        ("teddy bear bear", COCO_CLASSES, ("teddy bear", "bear")),
        ("bus stop sign", COCO_CLASSES, ("bus", "stop sign")),  # as a text, it shows a bus stop
        ("microwave oven", COCO_CLASSES, ("microwave", "oven")),
        ("hot dog dog", COCO_CLASSES, ("hot dog", "dog")),
        ("Person, CAR", VOC_CLASSES, ("person", "car")),
        ("fire engine room", ["fire", "fire engine", "engine room"], ("fire", "engine room")),
        ("fire engine", ["fire", "engine", "fire engine"], ("fire engine",)),
    ],
)
def test_a_sequence_of_names_is_split(text, classes, names):
    assert split_names(text, by_key(classes)) == names


@pytest.mark.parametrize("text", ["", "  ", "person unicorn", "a person", "people", "puppy"])
def test_a_text_with_other_words_is_refused(text):
    message = f"'{text}' is not a sequence of names of the classes aeroplane, bicycle, bird, "
    with pytest.raises(ValueError, match=message):
        split_names(text, by_key(VOC_CLASSES))


NAMES = ["b a b", "a b", "cc", "a", "b"]


def split_by_trying(text):
    """All ways to begin are tried, the longer name first."""
    if not text:
        return ()
    for name in NAMES:
        if text.startswith(name + " "):
            rest = split_by_trying(text[len(name) + 1 :])
            if rest is not None:
                return (name, *rest)
    return None


@settings(derandomize=True, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "b", "cc", "x"]), min_size=1, max_size=8))
def test_names_are_split_as_by_exhaustive_search(words):
    expected = split_by_trying(" ".join(words) + " ")
    if expected is None:
        with pytest.raises(ValueError, match="not a sequence of names"):
            split_names(" ".join(words), by_key(NAMES))
    else:
        assert split_names(" ".join(words), by_key(NAMES)) == tuple(dict.fromkeys(expected))


def test_an_unnamed_class_may_not_be_named():
    finder = mention_finder()
    finder.require_unnamed("a dog", ["dog"], ["sky"])
    with pytest.raises(ValueError, match="'a puppy' names 'dog', which is listed as an unnamed"):
        finder.require_unnamed("a puppy", [], ["dog"])
    with pytest.raises(ValueError, match="'dog' and 'Dog' are the same name"):
        finder.require_unnamed("a dog", ["dog"], ["Dog"])
