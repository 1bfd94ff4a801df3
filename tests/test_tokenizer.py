"""Token ids, and the tokens that spell a class, with a small vocabulary and with CLIP's real one.

The small vocabulary is built here: all bytes and a few merges, so that its tokens can be counted by
hand. CLIP's own is read from `shared/data/clip` beside the repository, or from the folder that the
environment variable SEEDIFF_CLIP_VOCAB names; where there is none, its cases are not collected.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers.pre_tokenizers import ByteLevel

from seediff_jax.class_names import COCO_CLASSES, SHAPES_CLASSES, VOC_CLASSES
from seediff_jax.tokenizer import class_token_mask, load_tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = ("p h", "o t", "ph ot", "phot o</w>", "o f</w>", "d o", "do g</w>", "a e", "ae r", "aer o")
MERGES += ("aero p", "l a", "la n", "lan e</w>")
CLIP = Path(
    os.environ.get("SEEDIFF_CLIP_VOCAB") or Path(__file__).parents[2] / "shared" / "data" / "clip"
)
HAS_CLIP = (CLIP / "vocab.json").exists() and (CLIP / "merges.txt").exists()
VOCABULARIES = ["small", "clip"] if HAS_CLIP else ["small"]

# As saved with Stable Diffusion 1.x, and with 2.x, whose two files disagree about the padding.
TOKEN = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
SD1 = {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "pad_token": END}
SD1 |= {
    name: {"__type": "AddedToken", "content": content, **TOKEN}
    for name, content in [("bos_token", START), ("eos_token", END), ("unk_token", END)]
}
SD2_MAP = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": "!"}


def write_json(path, content):
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_tokenizer(folder, vocabulary="small", config=SD1, special_tokens_map=None):
    """Writes a diffusers `tokenizer/` folder."""
    folder.mkdir()
    if vocabulary == "clip":
        for name in ("vocab.json", "merges.txt"):
            shutil.copyfile(CLIP / name, folder / name)
    else:
        letters = sorted(ByteLevel.alphabet())
        entries = [*letters, *(letter + "</w>" for letter in letters)]
        entries += [merge.replace(" ", "") for merge in MERGES] + [START, END]
        write_json(folder / "vocab.json", {token: i for i, token in enumerate(entries)})
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES, ""]))
    if config is not None:
        write_json(folder / "tokenizer_config.json", config)
    if special_tokens_map is not None:
        write_json(folder / "special_tokens_map.json", special_tokens_map)
    return folder


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


def test_padding_is_the_token_that_the_files_name(tmp_path, vocabulary):
    sd1 = load_tokenizer(write_tokenizer(tmp_path / "sd1", vocabulary))
    sd2 = load_tokenizer(write_tokenizer(tmp_path / "sd2", vocabulary, SD1, SD2_MAP))
    bare = load_tokenizer(write_tokenizer(tmp_path / "bare", vocabulary, None))
    vocab = json.loads((tmp_path / "sd1" / "vocab.json").read_text(encoding="utf-8"))
    for tokenizer, padding in [(sd1, END), (sd2, "!"), (bare, END)]:
        [ids] = tokenizer.encode(["a dog"])
        assert ids[-1] == vocab[padding]
        assert vocab[END] in ids
        # Where "!" is the padding token, one in the text is that token too.
        assert (tokenizer.encode(["dog!"])[0, 1:] == vocab["!"]).any() == (padding == "!")


def test_length_is_what_the_config_says_or_what_is_passed(tmp_path):
    folder = write_tokenizer(tmp_path / "short", config=SD1 | {"model_max_length": 16})
    assert load_tokenizer(folder).encode(["a dog"]).shape == (1, 16)
    assert load_tokenizer(folder, max_length=8).encode(["a dog"]).shape == (1, 8)
    no_limit = write_tokenizer(tmp_path / "no_limit", config={"model_max_length": int(1e30)})
    assert load_tokenizer(no_limit).max_length == 77
    for bad in (2, "77"):
        write_json(folder / "tokenizer_config.json", SD1 | {"model_max_length": bad})
        with pytest.raises(ValueError, match=f"above 2 tokens, got {bad!r}"):
            load_tokenizer(folder)


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
    with pytest.raises(ValueError, match="class 'dog' stands beyond .* 75 tokens .*a a dog'"):
        class_token_mask(tokenizer, ["a " * 75 + "dog"], [["dog"]])


def test_a_word_that_the_vocabulary_cannot_write_is_an_error(tmp_path):
    folder = write_tokenizer(tmp_path / "hand_made")
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    kept = [token for token in vocab if token.removesuffix("</w>") != "z"]
    write_json(folder / "vocab.json", {token: i for i, token in enumerate(kept)})
    tokenizer = load_tokenizer(folder)
    with pytest.raises(ValueError, match="cannot write 'Zebra,' in the prompt 'a Zebra, a dog'"):
        tokenizer.encode(["a dog", "a Zebra, a dog"])
    with pytest.raises(ValueError, match="cannot write 'zebra'"):
        class_token_mask(tokenizer, ["a zebra"], [["zebra"]])
    # The end token itself may stand in a text, as transformers allows.
    assert (tokenizer.encode([f"a dog {END}"])[0, 3:] == len(kept) - 1).all()


@pytest.mark.parametrize("prompts", ["a dog", []])
def test_prompts_must_be_a_list_with_something_in_it(small, prompts):
    with pytest.raises(ValueError, match="prompts must be a list of at least one text"):
        small.encode(prompts)


@pytest.mark.parametrize(
    ("prompts", "classes", "message"),
    [
        ([], [], "prompts must be a list of at least one"),
        (["a dog"], ["dog"], r"a list of names for each prompt, got \['dog'\]"),
        (["a dog"], "dog", "a list of names for each prompt, got 'dog'"),
        (["a dog", "a cat"], [["dog"]], "2 prompts need as many lists of classes, got 1"),
        (["a dog"], [], "1 prompts need as many lists of classes, got 0"),
        (["a dog"], [[]], "prompt 'a dog': the list of classes is empty"),
        (["a dog"], [["dog", "dog"]], "'dog' and 'dog' are the same name"),
        (["a dog", "a photo"], [["dog"], ["bus"]], "prompt 'a photo' does not name class 'bus'"),
        (["a hot dog"], [["dog"]], "does not name class 'dog'"),
    ],
)
def test_bad_lists_and_absent_classes_are_errors(small, prompts, classes, message):
    with pytest.raises(ValueError, match=message):
        class_token_mask(small, prompts, classes)


def test_tokenizers_are_equal_by_content(tmp_path, small, folders):
    again = load_tokenizer(folders["small"])
    assert again == small
    assert hash(again) == hash(small)
    assert load_tokenizer(folders["small"], max_length=16) != small
    other_padding = write_tokenizer(tmp_path / "sd2", "small", SD1, SD2_MAP)
    assert load_tokenizer(other_padding) != small
    other_merges = write_tokenizer(tmp_path / "other", "small")
    lines = (other_merges / "merges.txt").read_text().splitlines()
    lines[1], lines[2] = lines[2], lines[1]
    (other_merges / "merges.txt").write_text("\n".join(lines) + "\n")
    assert load_tokenizer(other_merges) != small


def test_tokenizer_json_alone_gives_the_same_tokenizer(tmp_path, tokenizer):
    tokenizer.backend.save_pretrained(tmp_path)
    assert not (tmp_path / "vocab.json").exists()
    again = load_tokenizer(tmp_path)
    assert again == tokenizer
    prompts = ["a photo of an aeroplane!", ""]
    np.testing.assert_array_equal(again.encode(prompts), tokenizer.encode(prompts))


def test_truncation_saved_in_tokenizer_json_cuts_nothing(tmp_path, small):
    small.backend.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    saved["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst"}
    saved["truncation"]["stride"] = 0
    write_json(tmp_path / "tokenizer.json", saved)
    prompts = ["a photo of a dog"]
    tokenizer = load_tokenizer(tmp_path)
    np.testing.assert_array_equal(tokenizer.encode(prompts), small.encode(prompts))


def cut(path, size):
    path.write_bytes(path.read_bytes()[:size])


def without_entry(path, *tokens):
    vocab = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {token: i for token, i in vocab.items() if token not in tokens})


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = write_tokenizer(tmp_path / "tokenizer")
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing; needed: vocab.json and"):
        load_tokenizer(folder)
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        load_tokenizer(tmp_path / "absent")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: cut(f / "vocab.json", 3000), "vocab.json is damaged, it is not JSON"),
        (lambda f: (f / "vocab.json").write_text("[]"), "vocab.json is damaged: .* JSON object"),
        (
            lambda f: (f / "vocab.json").write_text('{"a": "b"}'),
            "vocab.json or merges.txt is damag",
        ),
        (lambda f: cut(f / "merges.txt", 15), "merges.txt is damaged: .* line 1"),
        (lambda f: cut(f / "merges.txt", 18), "no merge makes .* cut short"),
        (lambda f: (f / "merges.txt").write_text("#version: 0.2\nqq q\n"), "`qq` out of vocab"),
        (lambda f: cut(f / "tokenizer_config.json", 20), "tokenizer_config.json is damaged"),
        (lambda f: (f / "special_tokens_map.json").write_text("{"), "tokens_map.json is damaged"),
        (lambda f: (f / "tokenizer.json").write_text('{"model"'), "tokenizer.json is damaged"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json is damaged"),
        (
            lambda f: write_json(f / "tokenizer.json", {"model": {"type": "WordLevel"}}),
            "tokenizer.json holds no byte-pair encoding",
        ),
        (
            lambda f: write_json(f / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer"}),
            "tokenizer_config.json: T5Tokenizer is not CLIPTokenizer",
        ),
        (
            lambda f: write_json(f / "tokenizer_config.json", {"padding_side": "left"}),
            "padding_side must be 'right', got 'left'",
        ),
        (lambda f: without_entry(f / "vocab.json", START), r"vocab.json has no entry for .*start"),
        (
            lambda f: write_json(f / "special_tokens_map.json", {"pad_token": "<pad>"}),
            "vocab.json has no entry for the special token '<pad>'",
        ),
        (
            lambda f: (f / "vocab.json").write_text(
                (f / "vocab.json").read_text(encoding="utf-8").replace(": 5,", ": 6,"),
                encoding="utf-8",
            ),
            "two entries have the same id",
        ),
    ],
)
def test_a_damaged_or_foreign_file_is_named(tmp_path, damage, message):
    folder = write_tokenizer(tmp_path / "tokenizer")
    damage(folder)
    with pytest.raises(ValueError, match=message):
        load_tokenizer(folder)


def test_loading_needs_no_torch_and_prints_nothing(folders):
    # A process of its own, with PyTorch hidden: transformers is imported once a process.
    script = f"""
import importlib.util, os, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find_spec(name, *rest)
import seediff_jax.tokenizer
assert "transformers" not in sys.modules
seediff_jax.tokenizer.load_tokenizer({str(folders["small"])!r}).encode(["a dog " * 20])
assert "torch" not in sys.modules
assert "TRANSFORMERS_NO_ADVISORY_WARNINGS" not in os.environ
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TRANSFORMERS")}
    command = [sys.executable, "-W", "error", "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
