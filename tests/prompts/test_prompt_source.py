"""From flags to prompts: files, templates, class lists, and the number of images."""

import json

import pytest

from seediff_jax.errors import UserError
from seediff_jax.prompts.class_lists import COCO_CLASSES, SHAPES_CLASSES, VOC_CLASSES
from seediff_jax.prompts.prompt_record import PromptRecord
from seediff_jax.prompts.prompt_source import (
    PromptSource,
    classes_left_out,
    count_images,
    make_plan,
)


def plan_of(model="m", **options):
    return make_plan(PromptSource(model=model, **options))


def shown(plan):
    return [(record.prompt, *record.classes) for record in plan.records]


def write(folder, name, content):
    path = folder / name
    path.write_text(content)
    return str(path)


def test_by_default_each_shape_gets_a_prompt():
    plan, names = plan_of("shapes")
    assert [record.classes for record in plan.records] == [(name,) for name in SHAPES_CLASSES]
    assert plan.records[3].prompt == "a photo of a star" and names == SHAPES_CLASSES


def test_stickers_show_eight_classes_with_the_ids_of_voc():
    plan, names = plan_of("stickers")
    assert len(plan.records) == 8 and names == VOC_CLASSES
    assert plan.records[0].prompt == "a photo of a boat"


@pytest.mark.parametrize("spelling", ["voc", "VOC "])
def test_of_a_named_list_an_embedded_model_leaves_out_what_it_does_not_draw(spelling):
    source = PromptSource(model="stickers", classes=(spelling,))
    plan, names = make_plan(source)
    assert classes_left_out(source) == ("diningtable",) and names == VOC_CLASSES
    assert [r.classes for r in plan.records] == [(n,) for n in VOC_CLASSES if n != "diningtable"]
    assert classes_left_out(PromptSource(model="owner/model", classes=("voc",))) == ()


@pytest.mark.parametrize(
    ("model", "classes", "wrong"),
    [
        ("stickers", ["cat", "dragon"], "'dragon'"),
        ("shapes", ["cat"], "'cat'"),
        ("shapes", ["voc"], "'aeroplane', "),
        ("stickers", ["diningtable"], "'diningtable'"),
    ],
)
def test_an_embedded_model_refuses_classes_that_it_does_not_draw(model, classes, wrong):
    with pytest.raises(UserError, match=f"{model!r} does not draw {wrong}.*it draws"):
        plan_of(model, classes=classes)


@pytest.mark.parametrize("name", ["potted plant", "pottedplant", "tv", "Cat"])
def test_an_embedded_model_knows_other_spellings_of_its_classes(name):
    assert len(plan_of("stickers", classes=[name])[0].records) == 1


def test_another_model_needs_prompts_or_classes():
    with pytest.raises(ValueError, match="needs a prompt "):
        plan_of("owner/model")


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["voc"], VOC_CLASSES),
        (["coco"], COCO_CLASSES),
        (["star", "ring"], ("star", "ring")),
        (["ring", "star"], ("ring", "star")),
        (["dog", "unicorn"], ("dog", "unicorn")),
    ],
)
def test_ids_are_those_of_the_list_that_is_named_or_count_the_classes_that_are(classes, expected):
    assert plan_of(classes=classes, templates=["one {class}"])[1] == expected


@pytest.mark.parametrize(
    ("ids", "classes", "expected"),
    [
        ("voc", ["dog", "person"], VOC_CLASSES),
        ("coco", ["dog", "person"], COCO_CLASSES),
        ("coco", None, COCO_CLASSES),
        ("shapes", ["Ring", "star"], SHAPES_CLASSES),
    ],
)
def test_class_ids_gives_classes_the_ids_and_names_of_a_list(ids, classes, expected):
    shown = {"texts": ["two dogs"]} if classes is None else {"classes": classes}
    plan, names = plan_of(class_ids=ids, **shown)
    assert names == expected
    assert {name for record in plan.records for name in record.classes} <= set(expected)


def test_class_ids_takes_other_spellings_of_its_classes_and_refuses_others():
    plan, names = plan_of(class_ids="voc", classes=["potted plant", "Dog"])
    assert shown(plan) == [
        ("a photo of a potted plant", "pottedplant"),
        ("a photo of a Dog", "dog"),
    ]
    plan, names = plan_of(class_ids="voc", classes=["couch", "motorcycle"])
    assert shown(plan)[0] == ("a photo of a couch", "sofa") and names == VOC_CLASSES
    assert shown(plan_of(class_ids="coco", classes=["tvmonitor"])[0])[0][1] == "tv"
    with pytest.raises(UserError, match="one id, of sofa, for 'couch' and 'sofa'; leave one out"):
        plan_of(class_ids="voc", classes=["couch", "sofa"])
    with pytest.raises(UserError, match="^class_ids=voc has no id for 'zebra', 'elk'; leave it"):
        plan_of(class_ids="voc", classes=["dog", "zebra", "elk"])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["star", "ring"], SHAPES_CLASSES),
        (["dog", "person"], VOC_CLASSES),  # COCO has both too; VOC goes first
        (["dog", "zebra"], COCO_CLASSES),
        (["dog", "unicorn"], ("dog", "unicorn")),
    ],
)
def test_classes_that_prompts_alone_name_have_the_ids_of_a_list_that_has_all(
    tmp_path, names, expected
):
    line = json.dumps({"prompt": " ".join(names), "classes": names})
    assert plan_of(prompts=write(tmp_path, "p.jsonl", line))[1] == expected


def test_ids_of_unknown_classes_follow_their_first_mention(tmp_path):
    lists = [["unicorn", "dragon"], ["elf", "unicorn"]]
    lines = [json.dumps({"prompt": " ".join(names), "classes": names}) for names in lists]
    path = write(tmp_path, "prompts.jsonl", "\n".join(lines))
    assert plan_of(prompts=path)[1] == ("unicorn", "dragon", "elf")


def test_a_file_of_classes_has_their_ids_and_synonyms(tmp_path):
    path = write(tmp_path, "names.txt", "dog: cur\ncat\n")
    prompts = write(tmp_path, "p.txt", "a kitten\na cur\n")
    plan, names = plan_of(classes=[path], prompts=prompts, unnamed_classes=["sky"])
    assert names == ("dog", "cat", "sky")
    assert shown(plan) == [("a kitten", "cat", "sky"), ("a cur", "dog", "sky")]
    assert plan.synonyms == {"dog": ("cur",)}
    with pytest.raises(ValueError, match=r"p\.txt:1: prompt 'a puppy' names none of the 2 classes"):
        plan_of(classes=[path], prompts=write(tmp_path, "p.txt", "a puppy"))


@pytest.mark.parametrize("flag", ["classes", "prompts", "templates", "subclasses"])
def test_an_absent_file_is_an_error(tmp_path, flag):
    path = str(tmp_path / "absent.txt")
    value = path if flag in ("prompts", "subclasses") else [path]
    with pytest.raises(FileNotFoundError, match="absent"):
        plan_of(**{"classes": ["dog"], flag: value})


def test_more_classes_than_ids_are_refused():
    names = [f"thing{i}" for i in range(255)]
    with pytest.raises(ValueError, match="255 classes, but a mask has ids for 254"):
        plan_of(classes=names)


def test_templates_may_be_given_and_come_from_files_in_order(tmp_path):
    path = write(tmp_path, "t.txt", "two {class}\nthree {class}")
    plan, _ = plan_of(classes=["cat", "dog"], templates=["one {class}", path, "a {class} in x.txt"])
    assert [record.prompt for record in plan.records] == [
        *("one cat", "one dog", "two cat", "two dog", "three cat", "three dog"),
        *("a cat in x.txt", "a dog in x.txt"),
    ]


def test_sub_classes_of_a_file_replace_the_built_in_ones(tmp_path):
    path = write(tmp_path, "kinds.txt", "dog: cur, mutt")
    plan, _ = plan_of(classes=["dog", "cat"], subclasses=path)
    prompts = [("a photo of a cur", "dog"), ("a photo of a mutt", "dog")]
    assert shown(plan)[:3] == [*prompts, ("a photo of a kitten", "cat")]
    assert {"cur", "mutt", "puppy"} <= set(plan.synonyms["dog"])
    assert plan_of(classes=["dog", "cat"])[0].synonyms == {}


def test_built_in_sub_classes_need_no_file():
    plan, names = plan_of(classes=["voc"], templates=["a {subclass}"])
    assert ("a puppy", "dog") in shown(plan) and ("a bottle", "bottle") in shown(plan)
    assert names == VOC_CLASSES


def test_unnamed_classes_are_added_to_every_prompt():
    plan, names = plan_of(classes=["dog"], unnamed_classes=["sky"])
    assert plan.records == (PromptRecord("a photo of a dog", ("dog", "sky"), ("sky",)),)
    assert names == ("dog", "sky")
    with pytest.raises(ValueError, match="'dog' and 'dog' are the same name"):
        plan_of(classes=["dog"], unnamed_classes=["dog"])


def test_a_prompt_file_of_dataset_diffusion_has_its_own_classes(tmp_path):
    entry = {"filename": "0.jpg", "caption": "a lamp; tv sofa", "class_prompt": "tv sofa"}
    path = write(tmp_path, "p.json", json.dumps([entry]))
    with pytest.raises(ValueError, match="entry 1: class_prompt 'tv sofa' is not a sequence"):
        plan_of(prompts=path)
    assert plan_of(prompts=path, classes=["tv", "sofa"])[1] == ("tv", "sofa")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prompts": "p.txt", "templates": ["a {class}"]},
            "--template and --prompts exclude each other; give one",
        ),
        (
            {"prompts": "p.txt", "subclasses": "k.txt"},
            "--subclasses and --prompts exclude each other; give one",
        ),
        (
            {"classes": ["dog"], "subclasses": "k.txt", "templates": ["a {class} {{subclass}}"]},
            "--subclasses fill {subclass}, which no --template has",
        ),
        ({"classes": ["dog"], "templates": ["a photo"]}, "template 'a photo' must name the class"),
        ({"classes": ["dog", "Dog"]}, "--classes: classes 'dog' and 'Dog' are the same name"),
    ],
)
def test_contradictory_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan_of(**options)


def test_sub_classes_of_no_class_of_the_run_are_refused(tmp_path):
    path = write(tmp_path, "kinds.txt", "dog: cur\ndgo: mutt")
    with pytest.raises(ValueError, match=r"kinds\.txt: 'dgo' is not one of the 1 classes"):
        plan_of(classes=["dog"], subclasses=path)


def test_the_order_is_passed_on():
    options = {"images_per_prompt": 3, "shuffle_seed": 5, "balance_classes": True}
    plan, _ = plan_of(classes=["voc"], shuffle=True, **options)
    assert options.items() <= plan.settings().items()


@pytest.mark.parametrize(
    ("options", "num_images", "expected"),
    [
        ({}, None, 20),
        ({}, 47, 47),
        ({"images_per_prompt": 3}, None, 60),
        ({"images_per_prompt": 3}, 60, 60),
        ({"images_per_prompt": 3}, 7, 7),
        ({"images_per_prompt": 3, "balance_classes": True}, 61, 61),
    ],
)
def test_images_are_counted(options, num_images, expected):
    source = PromptSource(model="m", classes=["voc"], num_images=num_images, **options)
    plan, _ = make_plan(source)
    assert count_images(plan, source) == expected


@pytest.mark.parametrize("each", [1, 3])
def test_more_images_than_images_per_prompt_allows_are_refused(each):
    source = PromptSource(model="m", classes=["voc"], images_per_prompt=each, num_images=61)
    plan, _ = make_plan(source)
    message = f"num_images=61 is more than 20 prompts have with images_per_prompt={each}, which is"
    with pytest.raises(ValueError, match=message):
        count_images(plan, source)


@pytest.mark.parametrize(("name", "known"), [("COCO", "coco"), (" Voc", "voc"), ("vOC", "voc")])
def test_a_class_list_is_found_in_any_case(name, known):
    assert plan_of(classes=[name]) == plan_of(classes=[known])


def test_prompts_of_a_command_line_show_those_of_the_classes_that_they_name():
    plan, names = plan_of(texts=["a cat on a sofa", "two dogs"], classes=["sofa", "dog", "cat"])
    assert shown(plan) == [("a cat on a sofa", "sofa", "cat"), ("two dogs", "dog")]
    assert names == ("sofa", "dog", "cat")


def test_without_classes_a_prompt_shows_those_of_coco_or_of_the_embedded_model():
    plan, names = plan_of(texts=["a cat on a sofa"])
    assert shown(plan) == [("a cat on a sofa", "cat", "couch")] and names == COCO_CLASSES
    plan, names = plan_of("shapes", texts=["a photo of a ring and a star on a cross"])
    assert shown(plan)[0][1:] == ("star", "ring", "cross") and names == SHAPES_CLASSES


@pytest.mark.parametrize("text", ["a photo", " "])
def test_a_prompt_without_any_class_is_refused(text):
    with pytest.raises(ValueError, match="^--prompt: .*(names none of the 8 classes|blank)"):
        plan_of("shapes", texts=["a star", text])


def test_classes_that_the_embedded_model_does_not_draw_are_refused_by_name(tmp_path):
    path = write(
        tmp_path, "p.jsonl", '{"prompt": "a star", "classes": ["star"], "unnamed_classes": ["cow"]}'
    )
    for options, names in (
        ({"classes": ["dog", "star", "cat"]}, "'dog', 'cat';"),
        ({"unnamed_classes": ["moon"]}, "'moon';"),
        ({"prompts": path}, "'cow';"),
    ):
        with pytest.raises(ValueError, match=f"not draw {names} it draws circle, square, "):
            plan_of("shapes", **options)
    assert plan_of("shapes", classes=["STAR", "Ring"])[1] == ("STAR", "Ring")
    assert plan_of("/models/sd", classes=["dog"])[1] == ("dog",)


WORDS = {
    "a photo of a zebra": "'zebra'",
    "a photo of a zebra and a cat": "'zebra'",
    "a red car in the rain": "'red', 'in', 'the', 'rain'",
    "two cats": "'two', 'cats'",
    "a cat, a dotted boat": "',', 'dotted'",
    "A photographic cat": "'photographic'",
}


@pytest.mark.parametrize(("text", "unknown"), WORDS.items())
def test_words_that_the_embedded_model_was_not_trained_on_are_refused_by_name(
    tmp_path, text, unknown
):
    message = f"the embedded model 'stickers' does not know {unknown} in the prompt '{text}'; it "
    message += "draws aeroplane, .*, and knows a, an, and, .*; give --model another one"
    captions = [{"filename": "0.jpg", "caption": text, "class_prompt": "cat"}]
    entry = {"prompt": text, "classes": ["cat"]}
    for name, content in (
        ("p.txt", f"a cat\n{text}\n"),
        ("p.jsonl", '{"prompt": "a cat", "classes": ["cat"]}\n' + json.dumps(entry)),
        ("p.csv", f'prompt,classes\n"{text}",cat\n'),
    ):
        path = write(tmp_path, name, content)
        with pytest.raises(UserError, match=f"^{path}:2: {message}"):
            plan_of("stickers", prompts=path, classes=["voc"])
    path = write(tmp_path, "p.json", json.dumps(captions))
    with pytest.raises(UserError, match=f"^{path}: entry 1: {message}"):
        plan_of("stickers", prompts=path)
    with pytest.raises(UserError, match=f"^--prompt: {message}"):
        plan_of("stickers", texts=[text])


def test_words_of_templates_and_of_subclasses_must_be_known_too():
    with pytest.raises(UserError, match="'stickers' does not know 'drawing' in the prompt 'a draw"):
        plan_of("stickers", templates=["a photo of a {class}", "a drawing of a {class}"])
    with pytest.raises(UserError, match="does not know 'airliner' in the prompt 'an airliner'"):
        plan_of("stickers", classes=["aeroplane"], templates=["a {subclass}"])


@pytest.mark.parametrize(
    "text", ["A long shot of a Potted Plant and an airplane", "an image of a tv on a cloudy boat"]
)
def test_words_of_captions_are_known_in_any_capitals_and_order(text):
    assert shown(plan_of("stickers", texts=[text])[0])[0][0] == text
    assert plan_of("/models/sd", texts=["a red car in the rain"])[0].records[0].classes == ("car",)
