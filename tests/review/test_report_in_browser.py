"""The report in Chromium: order, pages, layers and filters work, and nothing fails on the console.

pip install -e '.[test,browser]' and python -m pytest -m browser run it. The browser is
/usr/bin/chromium, or what CHROMIUM names.
"""

import json
import os

import pytest

from seediff_jax.files.folder import open_folder
from seediff_jax.review.report import write_report
from seediff_jax.review.settings import ReportSettings
from tests.helpers import stored_runs
from tests.helpers.format_runs import CLASS_NAMES, METHODS, make_sample

pytestmark = pytest.mark.browser

COUNT, PAGE, MARKED = 110, 48, 3
MARKUP = "</script><script>broken = 1</script><img src=x onerror='broken = 2'>"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    def make(index):
        sample = make_sample(index)
        if index == MARKED:
            sample.record["prompt"] = MARKUP
        return sample

    place = tmp_path_factory.mktemp("runs") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_runs, "make_sample", make)
        patch.setattr(os, "fsync", lambda descriptor: None)
        stored_runs.run(place, ("files",), num_images=COUNT)
    return place


@pytest.fixture(scope="module")
def records(dataset):
    return [json.loads(line) for line in (dataset / "manifest.jsonl").read_bytes().splitlines()]


@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=["one.html", "folder"])
def page(request, chromium, dataset, tmp_path):
    output = tmp_path / request.param
    name = write_report(open_folder(dataset), ReportSettings(output=str(output)))
    tab, faults = chromium.new_page(viewport={"width": 1200, "height": 900}), []
    tab.on("console", lambda message: faults.append(message.text))
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("requestfailed", lambda asked: faults.append(asked.url))
    tab.on(
        "request",
        lambda asked: asked.url.startswith(("file:", "data:")) or faults.append(asked.url),
    )
    tab.goto(f"file://{name}")
    tab.wait_for_load_state("networkidle")
    yield tab
    tab.wait_for_load_state("networkidle")
    assert faults == []
    tab.close()


def indices(page):
    """The samples of the page, in order."""
    return [int(text) for text in page.locator("article .index").all_inner_texts()]


def all_indices(page):
    """The samples of all pages, by the buttons that a reader has."""
    found = indices(page)
    while page.locator("#next").is_enabled():
        page.click("#next")
        found += indices(page)
    return found


KEYS = {
    "score": lambda record: min(record["scores"]),
    "presence": lambda record: min((v for v in record["presence"] if v is not None), default=None),
    "area": lambda record: round(min(record["area_fractions"]), 6),
    "seeds": lambda record: min(record["seed_counts"]),
    "class": lambda record: ", ".join(record["classes"]),
    "index": lambda record: record["index"],
}


def test_samples_come_worst_first_and_in_any_other_order(page, records):
    assert all_indices(page) == [
        record["index"] for record in sorted(records, key=lambda r: (KEYS["score"](r), r["index"]))
    ]
    for name, key in KEYS.items():
        page.select_option("#sort", name)
        page.uncheck("#descending")
        judged = [record for record in records if key(record) is not None]
        last = [record for record in records if key(record) is None]
        assert bool(last) == (name == "presence")
        ascending = sorted(judged, key=key) + last
        assert all_indices(page) == [record["index"] for record in ascending], name
        page.check("#descending")
        descending = sorted(judged, key=key, reverse=True) + last
        assert all_indices(page) == [record["index"] for record in descending], name


def test_pages_hold_so_many_samples_and_end(page):
    assert page.inner_text("#place") == f"page 1 of 3, {COUNT - 1} samples"
    assert page.locator("#previous").is_disabled() and len(indices(page)) == PAGE
    first = indices(page)
    page.click("#next")
    page.click("#next")
    assert page.inner_text("#place") == f"page 3 of 3, {COUNT - 1} samples"
    assert page.locator("#next").is_disabled() and len(indices(page)) == COUNT - 1 - 2 * PAGE
    page.click("#previous")
    page.click("#previous")
    assert indices(page) == first


def test_mask_and_contour_can_be_shown_and_hidden(page):
    picture = page.locator("article .picture").first
    page.locator("article img").first.evaluate("image => image.decode()")
    seen = set()
    for mask in (True, False):
        for contour in (True, False):
            page.set_checked("#mask", mask)
            page.set_checked("#contour", contour)
            layers = {"mask": mask, "contour": contour}
            for name, is_shown in layers.items():
                assert picture.locator(f".layer.{name}").is_visible() == is_shown
            seen.add(picture.screenshot())
    assert len(seen) == 4


def test_all_pictures_load(page):
    widths = page.locator("article img").evaluate_all(
        "images => Promise.all(images.map((i) => i.decode().then(() => i.naturalWidth)))"
    )
    assert len(widths) == len(METHODS) * PAGE and set(widths) <= {9, 16, 24, 35}


def test_samples_can_be_chosen_by_class_prompt_and_emptiness(page, records):
    page.click(f"button.class:text-is('{CLASS_NAMES[1]}')")
    own = [record for record in records if CLASS_NAMES[1] in record["classes"]]
    assert sorted(all_indices(page)) == [record["index"] for record in own]

    def score(record):
        return record["scores"][record["classes"].index(CLASS_NAMES[1])]

    page.select_option("#sort", "score")
    expected = sorted(own, key=lambda record: (score(record), record["index"]))
    assert all_indices(page) == [record["index"] for record in expected]
    page.select_option("#class", "")
    page.fill("#text", "FÜR 10")
    assert sorted(all_indices(page)) == [10, *range(100, 110)]
    page.fill("#text", "")
    page.check("#empty")
    assert sorted(all_indices(page)) == [r["index"] for r in records if r["empty"]]


def test_markup_in_a_prompt_is_shown_as_it_was_written(page):
    page.fill("#text", "onerror")
    assert page.locator("article p").inner_text() == f"{MARKED} {MARKUP}"
    assert page.evaluate("typeof broken") == "undefined"
    assert page.locator("article *").evaluate_all(
        "found => [...new Set(found.map((each) => each.localName))].sort()"
    ) == ["div", "figcaption", "figure", "img", "li", "p", "span", "ul"]


def test_the_masks_of_all_methods_are_side_by_side(page, records):
    card = page.locator("article").first
    record = min(records, key=lambda record: (KEYS["score"](record), record["index"]))
    scores = [record["scores"], *(each["scores"] for each in record["other_methods"].values())]
    assert card.locator("figcaption").all_inner_texts() == [
        f"{name}: score {min(each):.3f}" for name, each in zip(METHODS, scores, strict=True)
    ]
    boxes = [figure.bounding_box() for figure in card.locator("figure").all()]
    assert [box["y"] for box in boxes] == [boxes[0]["y"]] * 3
    assert boxes[0]["x"] < boxes[1]["x"] < boxes[2]["x"]
    page.locator("article img").first.evaluate("image => image.decode()")
    # The masks of the samples are mirrored by the other methods, so that no two are the same.
    seen = {picture.screenshot() for picture in card.locator(".picture").all()}
    assert len(seen) == 3


def test_failures_settings_and_a_command_for_the_filter_are_shown(page, records, dataset):
    for part in ("failed", "settings"):
        page.click(f"#{part}-part summary")
    assert "latents are not finite" in page.locator("#failed").inner_text()
    settings = page.locator("#settings tr").all_inner_texts()
    assert "seediff_jax_version\t1.2.3" in settings
    page.fill("#least", "0.4")
    kept = sum(min(record["scores"]) >= 0.4 for record in records)
    expected = f"{kept} of {COUNT - 1}: seediff filter {dataset} --min_score=0.4"
    assert page.inner_text("#command") == expected
    page.fill("#present", "0.3")
    judged = ([value for value in r["presence"] if value is not None] for r in records)
    kept = sum(
        min(record["scores"]) >= 0.4 and min(values, default=1) >= 0.3
        for record, values in zip(records, judged, strict=True)
    )
    expected = f"{kept} of {COUNT - 1}: seediff filter {dataset} --min_score=0.4 --min_presence=0.3"
    assert page.inner_text("#command") == expected
    page.fill("#least", "")
    assert page.inner_text("#command").endswith(f"seediff filter {dataset} --min_presence=0.3")
    page.fill("#present", "")
    assert page.inner_text("#command") == ""


def test_presence_is_shown_per_class_and_per_sample(page, records):
    heads = page.locator("#classes th").all_inner_texts()
    assert heads[-2:] == ["mean presence", "presence 0 to 1"]
    for name, row in zip(CLASS_NAMES, page.locator("#classes tr").all()[1:], strict=True):
        own = [
            value
            for record in records
            for each, value in zip(record["classes"], record["presence"], strict=True)
            if each == name and value is not None
        ]
        mean = float(row.locator("td").nth(6).inner_text())
        assert abs(mean - sum(own) / len(own)) < 0.0006
    by_index = {str(record["index"]): record for record in records}
    for card in page.locator("article").all():
        record = by_index[card.locator(".index").inner_text().strip()]
        lines = card.locator("li").all_inner_texts()
        for line, value in zip(lines, record["presence"], strict=True):
            assert ("presence" in line) == (value is not None)
            assert value is None or line.endswith(f", presence {value:.3f}")


def test_a_dataset_without_presence_has_no_column_of_it(chromium, tmp_path):
    encoded = stored_runs.encoded

    def without(index, formats):
        made = encoded(index, formats)
        made.record.pop("presence", None)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored_runs, "encoded", without)
        stored_runs.run(tmp_path / "set", ("files",))
    name = write_report(open_folder(tmp_path / "set"), ReportSettings())
    tab, faults = chromium.new_page(), []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.goto(f"file://{name}")
    assert tab.locator("article").count() == stored_runs.NUM_IMAGES - 1 and faults == []
    assert tab.locator("#classes th").last.inner_text() == "areas 0 to 1"
    assert "presence" not in tab.inner_text("body")
    assert not tab.locator("#present").is_visible()
    tab.close()


def test_the_page_is_usable_on_a_narrow_screen(page):
    page.set_viewport_size({"width": 380, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
