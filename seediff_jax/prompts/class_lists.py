"""Class names of the data sets, and synonyms of classes; only data, no logic.

Names are in the order of the official ids. The tables are looked up by `names.name_key`:
spelling, plural and capitals need no entry, "pottedplant" is COCO's "potted plant" too.
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

_AIRCRAFT_KINDS = _names("airliner, jetliner, biplane, seaplane")
_MOTORCYCLE_KINDS = _names("moped, dirt bike")
_SOFA_KINDS = _names("settee, loveseat")
_TV_KINDS = _names("television, computer monitor")

SUBCLASSES: Mapping[str, tuple[str, ...]] = {
    "aeroplane": _AIRCRAFT_KINDS,
    "airplane": _AIRCRAFT_KINDS,
    "motorbike": _MOTORCYCLE_KINDS,
    "motorcycle": _MOTORCYCLE_KINDS,
    "sofa": _SOFA_KINDS,
    "couch": _SOFA_KINDS,
    "tvmonitor": _TV_KINDS,
    "tv": _TV_KINDS,
    "pottedplant": _names("houseplant, potted flower, potted tree"),
    "person": _names(
        "man, woman, boy, girl, child, baby, toddler, teenager, lady, gentleman, policeman, fireman"
    ),
    "bicycle": _names("tricycle"),
    "bird": _names(
        "pigeon, dove, seagull, duck, goose, swan, parrot, eagle, hawk, owl, sparrow, robin, crow,"
        "penguin, flamingo, peacock, ostrich, heron, pelican, hummingbird, hen, rooster"
    ),
    "boat": _names(
        "ship, sailboat, rowboat, motorboat, speedboat, canoe, kayak, ferry, yacht, dinghy, gondola"
    ),
    "bus": _names("minibus"),
    "car": _names("taxi, sedan, suv, minivan, convertible, hatchback, limousine"),
    "truck": _names("pickup truck, tow truck, dump truck"),
    "train": _names("locomotive"),
    "cat": _names("kitten, tomcat, tabby"),
    "dog": _names(
        "puppy, poodle, labrador, beagle, dalmatian, retriever, german shepherd, bulldog, corgi,"
        "dachshund, chihuahua, terrier, husky, pug"
    ),
    "horse": _names("pony, foal, stallion, mare"),
    "sheep": _names("lamb, ewe"),
    "cow": _names("calf, ox, heifer"),
    "bear": _names("grizzly bear, polar bear"),
    "chair": _names("armchair, deckchair, recliner"),
    "umbrella": _names("parasol"),
    "handbag": _names("purse"),
    "sports ball": _names("soccer ball, tennis ball, beach ball, golf ball, rugby ball"),
    "cup": _names("mug, teacup"),
    "sandwich": _names("hamburger"),
    "cake": _names("cupcake, cheesecake"),
    "cell phone": _names("smartphone"),
}
"""Kinds of a class, each a word for one of them that a template can take."""

_AIRCRAFT = _names("aeroplane, airplane, plane, aircraft")
_MOTORCYCLE = _names("motorbike, motorcycle")
_SOFA = _names("sofa, couch")
_TV = _names("tv, tv monitor, tv set, tv screen, monitor")

OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "aeroplane": _AIRCRAFT,
    "airplane": _AIRCRAFT,
    "motorbike": _MOTORCYCLE,
    "motorcycle": _MOTORCYCLE,
    "sofa": _SOFA,
    "couch": _SOFA,
    "tvmonitor": _TV,
    "tv": _TV,
    "pottedplant": _names("pot plant"),
    "diningtable": _names("dinner table"),
    "person": _names(
        "human, kid, infant, adult, guy, pedestrian, cyclist, skier, surfer, snowboarder,"
        "skateboarder"
    ),
    "bicycle": _names("bike"),
    "bird": _names("gull"),
    "bus": _names("autobus"),
    "car": _names("automobile"),
    "truck": _names("lorry"),
    "cat": _names("kitty"),
    "cow": _names("cattle"),
    "bear": _names("grizzly"),
    "traffic light": _names("stoplight, traffic signal"),
    "fire hydrant": _names("hydrant"),
    "backpack": _names("rucksack, knapsack"),
    "tie": _names("necktie"),
    "skis": _names("ski"),
    "baseball glove": _names("baseball mitt"),
    "tennis racket": _names("tennis racquet"),
    "sandwich": _names("burger"),
    "donut": _names("doughnut"),
    "laptop": _names("notebook computer"),
    "remote": _names("remote control"),
    "cell phone": _names("mobile phone"),
    "microwave": _names("microwave oven"),
    "refrigerator": _names("fridge"),
    "teddy bear": _names("teddy, stuffed bear"),
    "hair drier": _names("hair dryer, blow dryer, blow drier"),
}
"""Words for the same thing as a class."""

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    name: (*OTHER_NAMES.get(name, ()), *SUBCLASSES.get(name, ()))
    for name in {**OTHER_NAMES, **SUBCLASSES}
}
"""Words that also name a class: the same thing or a kind of it, never something wider (a table need
not be a dining table)."""

LOOK_ALIKES = _names(
    "hot dog, corn dog, prairie dog, teddy bear, dirt bike, exercise bike, microwave oven,"
    "sea horse, rocking horse, bus stop, bus station, train station, train track, toilet paper"
)
"""Compounds that do not show what one of their words names: their words count only for a class that
has the whole compound as its name or synonym."""
