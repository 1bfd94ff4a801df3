"""Class names of the data sets, and synonyms of classes; only data, no logic.

Names are in the order of the official ids. The tables are looked up by `names.name_key`, so
spellings, plurals and capitals need no entries: "pottedplant" also finds COCO's "potted plant".
"""

from collections.abc import Mapping


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(","))


VOC_CLASSES = _names(
    "aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, dog, horse,"
    "motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
)
COCO_CLASSES = _names(
    "person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,"
    "fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant,"
    "bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard,"
    "sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle,"
    "wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,"
    "hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv,"
    "laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator,"
    "book, clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
SHAPES_CLASSES = _names("circle, square, triangle, star, heart, ring, cross, crescent")
"""PASCAL VOC's ids 1..20, COCO's 80; the embedded model's 8."""

CLASS_LISTS: Mapping[str, tuple[str, ...]] = {
    "shapes": SHAPES_CLASSES,
    "voc": VOC_CLASSES,
    "coco": COCO_CLASSES,
}
"""The class lists by name."""

# Class -> other words for the same thing, and words for one of its kinds.
_WORDS = {
    "aeroplane": ("aeroplane, airplane, plane, aircraft", "airliner, jetliner, biplane, seaplane"),
    "motorbike": ("motorbike, motorcycle", "moped, dirt bike"),
    "sofa": ("sofa, couch", "settee, loveseat"),
    "tvmonitor": ("tv, tv monitor, tv set, tv screen, monitor", "television, computer monitor"),
    "bicycle": ("bike", "tricycle"),
    "bird": (
        "gull",
        "pigeon, dove, seagull, duck, goose, swan, parrot, eagle, hawk, owl, sparrow, robin, "
        "crow, penguin, flamingo, peacock, ostrich, heron, pelican, hummingbird, hen, rooster",
    ),
    "boat": (
        "",
        "ship, sailboat, rowboat, motorboat, speedboat, canoe, kayak, ferry, yacht, dinghy, "
        "gondola",
    ),
    "bus": ("autobus", "minibus"),
    "car": ("automobile", "taxi, sedan, suv, minivan, convertible, hatchback, limousine"),
    "cat": ("kitty", "kitten, tomcat, tabby"),
    "chair": ("", "armchair, deckchair, recliner"),
    "cow": ("cattle", "calf, ox, heifer"),
    "diningtable": ("dinner table", ""),
    "dog": (
        "",
        "puppy, poodle, labrador, beagle, dalmatian, retriever, german shepherd, bulldog, "
        "corgi, dachshund, chihuahua, terrier, husky, pug",
    ),
    "horse": ("", "pony, foal, stallion, mare"),
    "person": (
        "human, kid, infant, adult, guy, pedestrian, cyclist, skier, surfer, snowboarder, "
        "skateboarder",
        "man, woman, boy, girl, child, baby, toddler, teenager, lady, gentleman, policeman, "
        "fireman",
    ),
    "pottedplant": ("pot plant", "houseplant, potted flower, potted tree"),
    "sheep": ("", "lamb, ewe"),
    "train": ("", "locomotive"),
    "truck": ("lorry", "pickup truck, tow truck, dump truck"),
    "traffic light": ("stoplight, traffic signal", ""),
    "fire hydrant": ("hydrant", ""),
    "bear": ("grizzly", "grizzly bear, polar bear"),
    "backpack": ("rucksack, knapsack", ""),
    "umbrella": ("", "parasol"),
    "handbag": ("", "purse"),
    "tie": ("necktie", ""),
    "skis": ("ski", ""),
    "sports ball": ("", "soccer ball, tennis ball, beach ball, golf ball, rugby ball"),
    "baseball glove": ("baseball mitt", ""),
    "tennis racket": ("tennis racquet", ""),
    "cup": ("", "mug, teacup"),
    "sandwich": ("burger", "hamburger"),
    "donut": ("doughnut", ""),
    "cake": ("", "cupcake, cheesecake"),
    "laptop": ("notebook computer", ""),
    "remote": ("remote control", ""),
    "cell phone": ("mobile phone", "smartphone"),
    "microwave": ("microwave oven", ""),
    "refrigerator": ("fridge", ""),
    "teddy bear": ("teddy, stuffed bear", ""),
    "hair drier": ("hair dryer, blow dryer, blow drier", ""),
}
_WORDS |= {  # the same classes under COCO's names
    "airplane": _WORDS["aeroplane"],
    "motorcycle": _WORDS["motorbike"],
    "couch": _WORDS["sofa"],
    "tv": _WORDS["tvmonitor"],
}

OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    name: _names(others) for name, (others, _) in _WORDS.items() if others
}
"""Words for the same thing as a class."""

SUBCLASSES: Mapping[str, tuple[str, ...]] = {
    name: _names(kinds) for name, (_, kinds) in _WORDS.items() if kinds
}
"""Kinds of a class, each a word for one of them that a template can take."""

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    name: (*OTHER_NAMES.get(name, ()), *SUBCLASSES.get(name, ())) for name in _WORDS
}
"""Words that also name a class: the same thing or a kind of it, never something wider (a table need
not be a dining table)."""

LOOK_ALIKES = _names(
    "hot dog, corn dog, prairie dog, teddy bear, dirt bike, exercise bike, microwave oven,"
    "sea horse, rocking horse, bus stop, bus station, train station, train track, toilet paper"
)
"""Compounds that do not show what one of their words names: their words count only for a class that
has the whole compound as its name or synonym."""
