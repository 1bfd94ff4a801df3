"""The class lists, and the words that name their classes."""

import pytest

from seediff_jax.prompts.class_lists import (
    CLASS_LISTS,
    COCO_CLASSES,
    SHAPES_CLASSES,
    SUBCLASSES,
    SYNONYMS,
    VOC_CLASSES,
)
from seediff_jax.prompts.mentions import mention_finder
from seediff_jax.prompts.names import find_entry, name_key


def test_class_lists_follow_the_official_ids():
    assert (len(VOC_CLASSES), len(COCO_CLASSES), len(SHAPES_CLASSES)) == (20, 80, 8)
    voc = {1: "aeroplane", 7: "car", 11: "diningtable", 15: "person", 16: "pottedplant"}
    assert {i: VOC_CLASSES[i - 1] for i in voc} == voc
    assert VOC_CLASSES[-1] == "tvmonitor"
    # The ids 0..79 that detectors trained on COCO give out.
    coco = {0: "person", 2: "car", 16: "dog", 32: "sports ball", 52: "hot dog", 60: "dining table"}
    assert {i: COCO_CLASSES[i] for i in coco} == coco
    assert COCO_CLASSES[-1] == "toothbrush"
    assert SHAPES_CLASSES == (
        *("circle", "square", "triangle", "star"),
        *("heart", "ring", "cross", "crescent"),
    )


def test_every_synonym_belongs_to_a_listed_class_and_to_one_only():
    listed = {name_key(name) for name in (*VOC_CLASSES, *COCO_CLASSES)}
    assert {name_key(name) for name in SYNONYMS} <= listed
    assert len({name_key(name) for name in SYNONYMS}) == len(SYNONYMS)
    meanings = {}
    for name, words in SYNONYMS.items():
        for word in words:
            meanings.setdefault(word, set()).add(name)
    shared = {frozenset(names) for names in meanings.values() if len(names) > 1}
    pairs = [
        ("aeroplane", "airplane"),
        ("motorbike", "motorcycle"),
        ("sofa", "couch"),
        ("tvmonitor", "tv"),
    ]
    assert shared == {frozenset(pair) for pair in pairs}


@pytest.mark.parametrize("name", ["voc", "coco"])
def test_a_sub_class_names_its_class_in_whole_and_no_other_of_the_list(name):
    classes = CLASS_LISTS[name]
    for owner in classes:
        for word in find_entry(owner, SUBCLASSES) or ():
            spans = mention_finder().find(f"the {word}.", classes)
            assert {c: s for c, s in spans.items() if s} == {owner: [(4, 4 + len(word))]}


@pytest.mark.parametrize("name", ["voc", "coco"])
def test_many_classes_have_sub_classes(name):
    assert sum(find_entry(owner, SUBCLASSES) is not None for owner in CLASS_LISTS[name]) >= 17
