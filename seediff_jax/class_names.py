"""Class names in a text: the lists of the data sets, synonyms, and what counts as a mention.

Host only, and before any tokenizer: a mention is decided here, on words; `tokenizer` turns the
mentioned characters into token positions. Names are compared by the letters and digits of their
words run together: "pottedplant", "potted plant" and "Potted-Plants" are one name.
"""

import difflib
import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

Mentions = dict[str, list[tuple[int, int]]]
"""Class -> (start, end) of each mention, in characters of the prompt in Unicode's form NFC."""


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
"""Names in the order of the official ids (PASCAL VOC 1..20, COCO's 80); the embedded model's 8."""

_AIRCRAFT = _names("aeroplane, airplane, plane, aircraft, airliner, jetliner, biplane, seaplane")
_MOTORCYCLE = _names("motorbike, motorcycle, moped, dirt bike")
_SOFA = _names("sofa, couch, settee, loveseat")
_TV = _names("tv, television, tv monitor, tv set, tv screen, monitor, computer monitor")
_PLANT = _names("pot plant, houseplant, potted flower, potted tree")
_TABLE = _names("dinner table")

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "aeroplane": _AIRCRAFT,
    "airplane": _AIRCRAFT,
    "motorbike": _MOTORCYCLE,
    "motorcycle": _MOTORCYCLE,
    "sofa": _SOFA,
    "couch": _SOFA,
    "tvmonitor": _TV,
    "tv": _TV,
    "pottedplant": _PLANT,
    "diningtable": _TABLE,
    "person": _names(
        "human, man, woman, boy, girl, child, kid, baby, toddler, infant, teenager, adult, lady,"
        "gentleman, guy, pedestrian, cyclist, skier, surfer, snowboarder, skateboarder, policeman,"
        "fireman"
    ),
    "bicycle": _names("bike, tricycle"),
    "bird": _names(
        "pigeon, dove, seagull, gull, duck, goose, swan, parrot, eagle, hawk, owl, sparrow, robin,"
        "crow, penguin, flamingo, peacock, ostrich, heron, pelican, hummingbird, hen, rooster"
    ),
    "boat": _names(
        "ship, sailboat, rowboat, motorboat, speedboat, canoe, kayak, ferry, yacht, dinghy, gondola"
    ),
    "bus": _names("minibus, autobus"),
    "car": _names("automobile, taxi, sedan, suv, minivan, convertible, hatchback, limousine"),
    "truck": _names("lorry, pickup truck"),
    "train": _names("locomotive"),
    "cat": _names("kitten, kitty"),
    "dog": _names(
        "puppy, poodle, labrador, beagle, dalmatian, retriever, german shepherd, bulldog, corgi,"
        "dachshund, chihuahua, terrier, husky, pug"
    ),
    "horse": _names("pony, foal, stallion"),
    "sheep": _names("lamb, ewe"),
    "cow": _names("cattle, calf, ox, heifer"),
    "chair": _names("armchair"),
    "traffic light": _names("stoplight, traffic signal"),
    "fire hydrant": _names("hydrant"),
    "backpack": _names("rucksack, knapsack"),
    "umbrella": _names("parasol"),
    "handbag": _names("purse"),
    "tie": _names("necktie"),
    "skis": _names("ski"),
    "sports ball": _names("soccer ball, tennis ball, beach ball, golf ball, rugby ball"),
    "baseball glove": _names("baseball mitt"),
    "tennis racket": _names("tennis racquet"),
    "cup": _names("mug, teacup"),
    "sandwich": _names("hamburger, burger"),
    "donut": _names("doughnut"),
    "cake": _names("cupcake, cheesecake"),
    "laptop": _names("notebook computer"),
    "remote": _names("remote control"),
    "cell phone": _names("mobile phone, smartphone"),
    "microwave": _names("microwave oven"),
    "refrigerator": _names("fridge"),
    "teddy bear": _names("teddy, stuffed bear"),
    "hair drier": _names("hair dryer, blow dryer, blow drier"),
}
"""Words that also name a class: the same thing or a kind of it, never something wider (a table need
not be a dining table). Spelling, plural and capitals need no entry."""

LOOK_ALIKES = _names(
    "hot dog, corn dog, prairie dog, teddy bear, dirt bike, exercise bike, microwave oven,"
    "sea horse, rocking horse, bus stop, bus station, train station, train track, toilet paper"
)
"""Compounds that do not show what one of their words names: their words count only for a class that
has the whole compound as its name or synonym."""

_PLURALS = {"person": "people", "man": "men", "child": "children", "mouse": "mice", "ox": "oxen"}
_PLURALS |= {"goose": "geese", "foot": "feet", "tooth": "teeth"}
_PLURALS |= {"f": "ves", "fe": "ves", "y": "ies"}
_PLURALS |= {end: end + "es" for end in ("s", "x", "z", "ch", "sh", "o")}

Owners = Mapping[str, tuple[str, ...]]


def require_classes(classes: Sequence[str], where: str) -> tuple[str, ...]:
    """Checks a list of class names: some, each with a letter or digit, no two the same name.

    Raises:
        ValueError: beginning with `where`, naming the class at fault.
    """
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise ValueError(f"{where}: classes must be a list of names, got {classes!r}")
    if not classes:
        raise ValueError(f"{where}: the list of classes is empty; give at least one name")
    seen: dict[str, str] = {}
    for name in classes:
        key = _key(name)
        if not key:
            raise ValueError(f"{where}: class {name!r} has no letter or digit")
        if key in seen:
            raise ValueError(f"{where}: classes {seen[key]!r} and {name!r} are the same name")
        seen[key] = name
    return tuple(classes)


def find_mentions(
    prompt: str, classes: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None = None
) -> Mentions:
    """Finds where a prompt names each class; a class that it does not name gets an empty list.

    Whole words only, in any capitals, singular or plural, spelled in one word or several (joined
    by blanks, hyphens, underscores, slashes). Where names overlap the longest counts alone: "teddy
    bear" is no bear where class "teddy bear" is asked for too, nor ever as one of `LOOK_ALIKES`.
    A class's own name goes before another's synonym: class "man" takes "man" from class "person".

    Args:
        prompt: any text.
        classes: different names.
        synonyms: class -> words that name it; replaces the entries of `SYNONYMS` for its classes.

    Raises:
        ValueError: classes that `require_classes` refuses, or a word that two classes both claim.
    """
    text = unicodedata.normalize("NFC", prompt)
    mentions: Mentions = {name: [] for name in classes}
    for start, end, claimants in _scan(text, _make_owners(prompt, classes, synonyms)):
        if len(claimants) > 1:
            raise ValueError(
                f"classes {claimants[0]!r} and {claimants[1]!r} both claim {text[start:end]!r} in "
                f"the prompt {prompt!r}; leave one out, or say with synonyms whose word it is"
            )
        for name in claimants:
            mentions[name].append((start, end))
    return mentions


def require_mentions(
    prompt: str, classes: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None = None
) -> Mentions:
    """Does what `find_mentions` does, and insists that every class is named.

    Raises:
        ValueError: as `find_mentions`, and for the first class that the prompt does not name.
    """
    mentions = find_mentions(prompt, classes, synonyms)
    for name, spans in mentions.items():
        if not spans:
            hint = _hint(prompt, name, classes, synonyms)
            raise ValueError(
                f"the prompt {prompt!r} does not name class {name!r}{hint}; write {name!r} in the "
                f"prompt, or pass synonyms={{{name!r}: [...]}} with the words that stand for it"
            )
    return mentions


def _hint(
    prompt: str,
    name: str,
    classes: Sequence[str],
    synonyms: Mapping[str, Sequence[str]] | None,
) -> str:
    """What in the prompt may have been meant, as the middle of an error message."""
    text = unicodedata.normalize("NFC", prompt)
    parts = {word.group().lower() for word in _words(name)}
    alone = find_mentions(prompt, [name], synonyms)[name]
    for start, end, claimants in _scan(text, _make_owners(prompt, classes, synonyms)):
        words = {word.group().lower() for word in _words(text[start:end])}
        if (start, end) in alone or parts <= words or words & _forms(name):
            owner = f"class {claimants[0]!r}" if claimants else "something else"
            return f" ({text[start:end]!r} there names {owner})"
    words = [word.group() for word in _words(text) if len(word.group()) > 2]
    near = [w for w in words if w.lower() in parts or _key(name).endswith(w.lower())]
    near += difflib.get_close_matches(name, words, n=1, cutoff=0.7)
    return f" (nearest there: {near[0]!r})" if near else ""


def _make_owners(
    prompt: str, classes: Sequence[str], synonyms: Mapping[str, Sequence[str]] | None
) -> Owners:
    names = require_classes(classes, f"prompt {prompt!r}")
    for name, words in (synonyms or {}).items():
        if isinstance(words, str) or not all(isinstance(w, str) and _key(w) for w in words):
            raise ValueError(f"synonyms of {name!r} must be a list of words, got {words!r}")
    return _owners(names, tuple((name, tuple(words)) for name, words in (synonyms or {}).items()))


@functools.lru_cache(maxsize=1024)
def _owners(classes: tuple[str, ...], synonyms: tuple[tuple[str, tuple[str, ...]], ...]) -> Owners:
    """Key of every name to look for -> the classes that claim it; none claims a look-alike."""
    table = {_key(name): words for name, words in (*SYNONYMS.items(), *synonyms)}
    owners: dict[str, tuple[str, ...]] = {form: () for name in LOOK_ALIKES for form in _forms(name)}
    for words_of in (lambda name: table.get(_key(name), ()), lambda name: (name,)):
        claims: dict[str, list[str]] = {}
        for name in classes:
            for form in {form for word in words_of(name) for form in _forms(word)}:
                claims.setdefault(form, []).append(name)
        owners |= {form: tuple(names) for form, names in claims.items()}
    return owners


def _scan(text: str, owners: Owners) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    """Names in a text from left to right, the longest at each place: (start, end, claimants)."""
    words, i = _words(text), 0
    longest = max(map(len, owners))
    while i < len(words):
        found = [run for run in _runs(text, words[i:], longest) if run[1] in owners]
        if found:
            count, key = found[-1]
            yield words[i].start(), words[i + count - 1].end(), owners[key]
        i += found[-1][0] if found else 1


def _runs(text: str, words: Sequence[re.Match[str]], longest: int) -> Iterator[tuple[int, str]]:
    """The first word, the first two and so on, as (count, key), while they may be one name."""
    key = ""
    for count, word in enumerate(words, 1):
        key += word.group().lower()
        if len(key) > longest:
            return
        yield count, key
        gap = text[word.end() : words[count].start()] if count < len(words) else "."
        # "A corn field" shows no acorn: the article is never the first half of a name.
        if key == "a" or not re.fullmatch(r"[\s\-_/]+", gap):
            return


def _words(text: str) -> list[re.Match[str]]:
    return list(re.finditer(r"[^\W_]+", text))


def _key(name: str) -> str:
    name = unicodedata.normalize("NFC", name)
    return "".join(word.group() for word in _words(name)).lower()


def _forms(name: str) -> set[str]:
    """Keys of singular and plurals; a plural that no language has does no harm."""
    key = _key(name)
    plurals = {key.removesuffix(end) + p for end, p in _PLURALS.items() if key.endswith(end)}
    return {key, key + "s"} | plurals
