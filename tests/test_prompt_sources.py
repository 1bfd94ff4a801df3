"""From flags to prompts: files, templates, class lists, and the number of images."""

import json

import pytest

from seediff_jax.class_lists import COCO_CLASSES, SHAPES_CLASSES, VOC_CLASSES
from seediff_jax.prompt_sources import PromptSource, count_images, make_plan
from seediff_jax.prompts import PromptRecord


def plan_of(model="m", **options):
    return make_plan(PromptSource(model=model, **options))


def shown(plan):
    return [(record.prompt, *record.classes) for record in plan.records]


def write(folder, name, content):
    path = folder / name
    path.write_text(content)
    return str(path)


def test_without_anything_each_shape_gets_a_prompt():
    plan, names = plan_of("shapes")
    assert [record.classes for record in plan.records] == [(name,) for name in SHAPES_CLASSES]
    assert plan.records[3].prompt == "a photo of a star" and names == SHAPES_CLASSES


def test_another_model_needs_to_be_told_what_to_show():
    with pytest.raises(ValueError, match="needs a prompt file"):
        plan_of("owner/model")


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (["voc"], VOC_CLASSES),
        (["coco"], COCO_CLASSES),
        (["star", "ring"], SHAPES_CLASSES),
        (["dog", "person"], VOC_CLASSES),  # COCO has both too; VOC goes first
        (["dog", "zebra"], COCO_CLASSES),
        (["dog", "unicorn"], ("dog", "unicorn")),
    ],
)
def test_ids_are_those_of_the_first_official_list_that_holds_all_classes(classes, expected):
    assert plan_of(classes=classes, templates=["one {class}"])[1] == expected


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


def test_sub_classes_of_a_file_go_before_the_built_in_ones_and_name_their_class(tmp_path):
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


def test_unnamed_classes_join_every_prompt():
    plan, names = plan_of(classes=["dog"], unnamed_classes=["sky"])
    assert plan.records == (PromptRecord("a photo of a dog", ("dog", "sky"), ("sky",)),)
    assert names == ("dog", "sky")
    with pytest.raises(ValueError, match="'dog' and 'dog' are the same name"):
        plan_of(classes=["dog"], unnamed_classes=["dog"])


def test_a_prompt_file_of_dataset_diffusion_brings_its_classes(tmp_path):
    entry = {"filename": "0.jpg", "caption": "a lamp; tv sofa", "class_prompt": "tv sofa"}
    path = write(tmp_path, "p.json", json.dumps([entry]))
    with pytest.raises(ValueError, match="entry 1: class_prompt 'tv sofa' is no sequence"):
        plan_of(prompts=path)
    assert plan_of(prompts=path, classes=["tv", "sofa"])[1] == ("tv", "sofa")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"prompts": "p.txt", "templates": ["a {class}"]},
            "--template is for making prompts.*; give one",
        ),
        (
            {"prompts": "p.txt", "subclasses": "k.txt"},
            "--subclasses is for making prompts.*; give one",
        ),
        (
            {"classes": ["dog"], "subclasses": "k.txt", "templates": ["a {class} {{subclass}}"]},
            "--subclasses fill {subclass}, which no --template has",
        ),
        ({"classes": ["dog"], "templates": ["a photo"]}, "template 'a photo' must name the class"),
        ({"classes": ["dog", "Dog"]}, "--classes: classes 'dog' and 'Dog' are the same name"),
    ],
)
def test_what_contradicts_itself_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        plan_of(**options)


def test_sub_classes_of_no_class_of_the_run_are_refused(tmp_path):
    path = write(tmp_path, "kinds.txt", "dog: cur\ndgo: mutt")
    with pytest.raises(ValueError, match=r"kinds\.txt: 'dgo' is none of the 1 classes; add it to"):
        plan_of(classes=["dog"], subclasses=path)


def test_the_order_is_passed_on():
    options = {"images_per_prompt": 3, "shuffle_seed": 5, "balance_classes": True}
    plan, _ = plan_of(classes=["voc"], **options)
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
    source = PromptSource(model="m", classes=["voc"], **options)
    plan, _ = make_plan(source)
    assert count_images(plan, source, num_images) == expected


@pytest.mark.parametrize("each", [1, 3])
def test_more_images_than_so_many_a_prompt_are_refused(each):
    source = PromptSource(model="m", classes=["voc"], images_per_prompt=each)
    plan, _ = make_plan(source)
    message = f"num_images=61 is more than 20 prompts have with images_per_prompt={each}, which is"
    with pytest.raises(ValueError, match=message):
        count_images(plan, source, 61)
