"""Token ids and the tokens that spell a class, with a small vocabulary and with that of CLIP."""

import json

import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel

from seediff_jax.prompts.class_lists import COCO_CLASSES, SHAPES_CLASSES, VOC_CLASSES
from seediff_jax.prompts.tokenizer import class_token_mask, load_tokenizer
from tests.helpers.tokenizer_folders import (
    END,
    HAS_CLIP,
    MERGES,
    START,
    VOCABULARIES,
    write_json,
    write_tokenizer,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("tokenizers")
    return {name: write_tokenizer(root / name, name) for name in VOCABULARIES}


@pytest.fixture(scope="module")
def tokenizers(folders):
    return {name: load_tokenizer(folder) for name, folder in folders.items()}


@pytest.fixture(scope="module", params=VOCABULARIES)
def vocabulary(request):
    return request.param


@pytest.fixture(scope="module")
def tokenizer(tokenizers, vocabulary):
    return tokenizers[vocabulary]


@pytest.fixture(scope="module")
def entries(folders, vocabulary):
    """Id -> entry, straight from the vocabulary file."""
    vocab = json.loads((folders[vocabulary] / "vocab.json").read_text(encoding="utf-8"))
    return {i: token for token, i in vocab.items()}


@pytest.fixture(scope="module")
def small(tokenizers):
    return tokenizers["small"]


def spelled(tokenizer, entries, prompt, classes, synonyms=None):
    """The text of the marked tokens of each class, as the vocabulary spells them."""
    [ids] = tokenizer.encode([prompt])
    [mask] = class_token_mask(tokenizer, [prompt], [classes], synonyms)
    rows = ["".join(entries[int(i)] for i in ids[row]) for row in mask]
    return [row.replace("</w>", " ").strip() for row in rows]


# Ids of the small vocabulary are 256 bytes, 256 last bytes, then the merges in order.
def small_id(token):
    letters = sorted(ByteLevel.alphabet())
    entries = [*letters, *(x + "</w>" for x in letters), *(m.replace(" ", "") for m in MERGES)]
    return [*entries, START, END].index(token)


def test_encode_is_start_text_end_padding(small):
    ids = small.encode(["A  photo\nof a dog", "", "aeroplane!"])
    assert ids.dtype == np.int32
    assert ids.shape == (3, 77)
    start, end = small_id(START), small_id(END)
    texts = [
        ["a</w>", "photo</w>", "of</w>", "a</w>", "dog</w>"],
        [],
        ["aerop", "lane</w>", "!</w>"],
    ]
    for row, tokens in zip(ids, texts, strict=True):
        expected = [start, *map(small_id, tokens), end]
        np.testing.assert_array_equal(row, expected + [end] * (77 - len(expected)))


if HAS_CLIP:

    @pytest.mark.parametrize(
        ("prompt", "expected"),
        [  # the ids that CLIP's own examples and Stable Diffusion's documentation print
            ("a diagram", [320, 22697]),
            ("a dog", [320, 1929]),
            ("A CAT.", [320, 2368, 269]),
            (
                "a photo of an astronaut riding a horse",
                [320, 1125, 539, 550, 18376, 6765, 320, 4558],
            ),
        ],
    )
    def test_clip_encodes_to_the_published_ids(tokenizers, prompt, expected):
        [ids] = tokenizers["clip"].encode([prompt])
        expected = [49406, *expected, 49407]
        np.testing.assert_array_equal(ids, expected + [49407] * (77 - len(expected)))

    @pytest.mark.parametrize(
        ("prompt", "classes", "positions"),
        [
            ("a photo of an aeroplane", ["aeroplane"], [[5, 6]]),
            ("a photo of a pottedplant", ["pottedplant"], [[5, 6, 7]]),
            ("a photo of a potted plant", ["pottedplant"], [[5, 6]]),
            ("a tvmonitor on a diningtable", ["tvmonitor", "diningtable"], [[2, 3], [6, 7, 8]]),
            ("Dogs, a hot dog, the dog's cat", ["dog", "hot dog", "cat"], [[1, 8], [4, 5], [10]]),
            ("the people and a man", ["person"], [[2, 5]]),
        ],
    )
    def test_positions_in_clip_counted_by_hand(tokenizers, prompt, classes, positions):
        [mask] = class_token_mask(tokenizers["clip"], [prompt], [classes])
        assert [np.flatnonzero(row).tolist() for row in mask] == positions


@pytest.mark.parametrize(
    ("prompt", "classes", "positions"),
    [
        ("a dog", ["dog"], [[2]]),
        ("dogs", ["dog"], [[1, 2, 3]]),  # do g s
        ("an aeroplane", ["aeroplane"], [[3, 4]]),  # a n | aerop lane
        ("a bus, dog, Bus", ["dog", "bus"], [[6], [2, 3, 4, 8, 9, 10]]),
        ("a hot dog", ["hot dog"], [[2, 3, 4, 5]]),  # h o t | dog: "o t" is no last part
        ("a hot-dog", ["hot dog"], [[2, 3, 4, 5, 6]]),
    ],
)
def test_positions_in_the_small_vocabulary_counted_by_hand(small, prompt, classes, positions):
    [mask] = class_token_mask(small, [prompt], [classes])
    assert [np.flatnonzero(row).tolist() for row in mask] == positions


@pytest.mark.parametrize("names", [VOC_CLASSES, COCO_CLASSES, SHAPES_CLASSES])
def test_marked_tokens_spell_the_name_of_every_class(tokenizer, entries, names):
    for name in names:
        spelling = spelled(tokenizer, entries, f"A long shot of a {name}, isolated", [name])
        assert spelling == [name]


@pytest.mark.parametrize("names", [VOC_CLASSES, COCO_CLASSES])
def test_marked_tokens_spell_the_name_in_one_word_and_in_two(tokenizer, entries, names):
    two_words = {"pottedplant": "potted plant", "tvmonitor": "tv monitor"}
    two_words |= {"diningtable": "dining table"} | {name: name for name in COCO_CLASSES}
    for name in names:
        words = two_words.get(name, name)
        for spelling in (words, words.replace(" ", "")):
            assert spelled(tokenizer, entries, f"the {spelling}.", [name]) == [spelling]


@pytest.mark.parametrize(
    ("prompt", "classes", "expected"),
    [
        ("Two DOGS and a Dog!", ["dog"], ["dogs dog"]),
        ("buses, knives, boxes", ["bus", "knife", "box"], ["buses", "knives", "boxes"]),
        ("a category of caterpillars with a cat", ["cat"], ["cat"]),
        ("a teddy bear, a bear", ["bear", "teddy bear"], ["bear", "teddy bear"]),
        ("(dog)'s \u201cdog\u201d", ["dog"], ["dog dog"]),
        ("caf\u00e9 dog na\u00efve \u2615 dog", ["dog"], ["dog dog"]),
        ("cafe\u0301 dog", ["dog"], ["dog"]),
        ("a man, women, children and sheep", ["person", "sheep"], ["man women children", "sheep"]),
        ("a  dining \n table", ["diningtable"], ["dining table"]),
    ],
)
def test_marked_tokens_are_all_mentions_and_nothing_else(
    tokenizer, entries, prompt, classes, expected
):
    assert spelled(tokenizer, entries, prompt, classes) == expected


def test_synonyms_reach_the_mask(tokenizer, entries):
    assert spelled(tokenizer, entries, "a hound", ["dog"], {"dog": ["hound"]}) == ["hound"]


def test_shorter_lists_of_classes_are_padded_with_empty_rows(small):
    prompts = ["a dog", "a dog and a bus"]
    mask = class_token_mask(small, prompts, [["dog"], ["bus", "dog"]])
    assert mask.shape == (2, 2, 77)
    assert mask.dtype == bool
    assert mask.any(axis=-1).tolist() == [[True, False], [True, True]]


def test_a_prompt_that_does_not_fit_is_an_error_that_names_the_first_lost_word(tokenizer):
    fits = "a " * 75
    assert tokenizer.encode([fits]).shape == (1, 77)
    prompt = "a " * 74 + "lane, Dogs!\tand more"
    with pytest.raises(ValueError, match=r"takes 8\d tokens, only 75 fit; .* lost is 'lane,'"):
        tokenizer.encode(["a dog", "a " + prompt])
    with pytest.raises(ValueError, match="a a lane, Dogs!.*first word that is lost is 'Dogs!'"):
        tokenizer.encode(["a " * 73 + "lane, Dogs!\tand more"])


def test_a_class_beyond_the_last_token_is_an_error_that_names_it_and_the_prompt(tokenizer):
    assert class_token_mask(tokenizer, ["a " * 74 + "dog"], [["dog"]])[0, 0, 75]
    with pytest.raises(ValueError, match="class 'dog' lies beyond .* 75 tokens .*a a dog'"):
        class_token_mask(tokenizer, ["a " * 75 + "dog"], [["dog"]])


def test_a_word_that_the_vocabulary_cannot_write_is_an_error(tmp_path):
    folder = write_tokenizer(tmp_path / "hand_made")
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    kept = [token for token in vocab if token.removesuffix("</w>") != "z"]
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(kept)})
    tokenizer = load_tokenizer(folder)
    with pytest.raises(ValueError, match="cannot encode 'Zebra,' in the prompt 'a Zebra, a dog'"):
        tokenizer.encode(["a dog", "a Zebra, a dog"])
    with pytest.raises(ValueError, match="cannot encode 'zebra'"):
        class_token_mask(tokenizer, ["a zebra"], [["zebra"]])
    # The end token itself may stand in a text, as transformers allows.
    assert (tokenizer.encode([f"a dog {END}"])[0, 3:] == len(kept) - 1).all()


@pytest.mark.parametrize("prompts", ["a dog", []])
def test_prompts_must_be_a_list_that_is_not_empty(small, prompts):
    with pytest.raises(ValueError, match="prompts must be a list of at least one text"):
        small.encode(prompts)


@pytest.mark.parametrize(
    ("prompts", "classes", "message"),
    [
        ([], [], "prompts must be a list of at least one"),
        (["a dog"], ["dog"], r"a list of names for each prompt, got \['dog'\]"),
        (["a dog"], "dog", "a list of names for each prompt, got 'dog'"),
        (["a dog", "a cat"], [["dog"]], "got 2 prompts but 1 lists of classes"),
        (["a dog"], [], "got 1 prompts but 0 lists of classes"),
        (["a dog"], [[]], "prompt 'a dog': the list of classes is empty"),
        (["a dog"], [["dog", "dog"]], "'dog' and 'dog' are the same name"),
        (["a dog", "a photo"], [["dog"], ["bus"]], "prompt 'a photo' does not name class 'bus'"),
        (["a hot dog"], [["dog"]], "does not name class 'dog'"),
    ],
)
def test_bad_lists_and_absent_classes_are_errors(small, prompts, classes, message):
    with pytest.raises(ValueError, match=message):
        class_token_mask(small, prompts, classes)
