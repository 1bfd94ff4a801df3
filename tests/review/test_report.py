"""The report: one page with all facts, thumbnails and text; nothing of a prompt becomes markup."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from seediff_jax.dataset.pictures import LIGHT, PALETTE
from seediff_jax.errors import UserError
from seediff_jax.files.folder import open_folder
from seediff_jax.main import main
from seediff_jax.review import report
from seediff_jax.review.report import make_thumbnails, write_report
from seediff_jax.review.settings import ReportSettings
from tests.helpers import stored_runs
from tests.helpers.format_runs import CLASS_NAMES, METHODS, SAMPLES, tree

MARKUP = "</script><img src=x onerror=alert(1)><!-- & \"quoted\" 'text' \u2028 @js@"


class Page(html.parser.HTMLParser):
    """The elements of a page, and the text of each script and style."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self._last = [], {}, None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self._last = dict(attributes).get("id", tag)

    def handle_data(self, text):
        self.texts[self._last] = self.texts.get(self._last, "") + text

    @property
    def data(self):
        return json.loads(self.texts["data"])


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs") / "set & <b>"
    with pytest.MonkeyPatch.context() as patch:
        make_sample = stored_runs.make_sample

        def make(index):
            sample = make_sample(index)
            if index == 0:
                sample.record["prompt"] = MARKUP
            return sample

        patch.setattr(stored_runs, "make_sample", make)
        stored_runs.run(place, ("files", "coco"))
    return place


@pytest.fixture(scope="module")
def page(dataset, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "page.html"
    before = tree(dataset)
    written = write_report(open_folder(dataset), ReportSettings(output=str(path)))
    assert written == str(path) and tree(dataset) == before
    return Page(path.read_text(encoding="utf-8"))


def lines_of(place):
    return [json.loads(line) for line in (place / "manifest.jsonl").read_bytes().splitlines()]


def test_the_page_has_every_sample_with_its_facts(page, dataset):
    rows = {row[0]: row for row in page.data["samples"]}
    records = lines_of(dataset)
    assert rows.keys() == {record["index"] for record in records}
    for record in records:
        _, prompt, facts, others, *_ = rows[record["index"]]
        assert prompt == record["prompt"]
        assert others == [
            min(each["scores"], default=0) for each in record["other_methods"].values()
        ]
        assert [fact[0] for fact in facts] == record["class_ids"]
        assert [fact[1] for fact in facts] == record["scores"]
        assert np.allclose([fact[2] for fact in facts], record["area_fractions"], atol=1e-6)
        assert [fact[3] for fact in facts] == record["seed_counts"]
        assert [fact[4] for fact in facts] == record["presence"]
    assert page.data["has_presence"]


def test_the_page_counts_classes_and_tells_failures_and_settings(page, dataset):
    records = lines_of(dataset)
    assert page.data["summary"].startswith("7 samples by ")
    assert page.data["summary"].endswith(", 1 failed")
    assert page.data["failed"] == [[stored_runs.BAD, "", "latents are not finite"]]
    for each in page.data["classes"]:
        entries = [
            (score, area)
            for record in records
            for k, score, area in zip(
                record["class_ids"], record["scores"], record["area_fractions"], strict=True
            )
            if k == each["id"]
        ]
        assert each["name"] == CLASS_NAMES[each["id"] - 1]
        assert (each["samples"], each["empty"]) == (len(entries), sum(a == 0 for _, a in entries))
        presence = [
            value
            for record in records
            for k, value in zip(record["class_ids"], record["presence"], strict=True)
            if k == each["id"] and value is not None
        ]
        assert each["mean_presence"] == pytest.approx(np.mean(presence))
        assert sum(each["presence"]) == len(presence)
        edges = np.linspace(0, 1, 21)
        for name, place in (("scores", 0), ("areas", 1)):
            below = [sum(entry[place] < edge for entry in entries) for edge in edges[1:-1]]
            assert each[name] == np.diff([0, *below, len(entries)]).tolist()
    settings = dict(page.data["settings"])
    assert (settings["seediff_jax_version"], settings["shard_size"]) == ("1.2.3", "3")
    assert page.data["methods"] == list(METHODS)


def test_a_prompt_with_markup_stays_text(page):
    assert page.data["samples"][0][1] == MARKUP
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    assert not any(tag == "img" or "onerror" in attributes for tag, attributes in page.elements)
    assert "<" not in page.texts["data"]
    assert "set & <b>" in page.texts["title"] and not any(tag == "b" for tag, _ in page.elements)


def test_the_page_needs_nothing_from_a_network(page):
    for _, attributes in page.elements:
        assert not {"src", "href", "action", "srcset"} & attributes.keys()
    code = page.texts["script"] + page.texts["style"]
    urls = set(re.findall(r"\bhttps?://[^\"']*", code))
    assert urls == {"http://www.w3.org/2000/svg"}  # a name of XML, which nothing is read from
    assert not re.search(r"\bfetch\(|XMLHttpRequest|import\(|innerHTML|@import|eval\(", code)
    (policy,) = (a["content"] for _, a in page.elements if a.get("http-equiv"))
    assert policy.startswith("default-src 'none';")


def test_thumbnails_show_the_image_its_classes_and_lines_around_them(page):
    for row in page.data["samples"]:
        image, mask = SAMPLES[row[0]].image, SAMPLES[row[0]].mask
        heads, contents = zip(*(url.split(",") for url in row[4:]), strict=True)
        assert heads == ("data:image/jpeg;base64", "data:image/png;base64")
        photo, layers = (Image.open(io.BytesIO(base64.b64decode(text))) for text in contents)
        assert photo.size == mask.shape[::-1]  # smaller than a thumbnail, so not scaled
        assert np.abs(np.asarray(photo).astype(int) - image).mean() < 8  # JPEG, of smooth waves
        masks = [mask, *SAMPLES[row[0]].other_masks]
        palette = make_thumbnails(image, np.stack(masks), 192)[1]
        for fact in row[2]:
            assert fact[5] == "rgb({}, {}, {})".format(*palette[fact[0]])  # of the legend
        parts = np.split(np.asarray(layers.convert("RGBA")), 2 * len(METHODS))
        for mask, fill, lines in zip(masks, parts[::2], parts[1::2], strict=True):
            assert np.array_equal(fill[..., 3] > 0, mask > 0)
            assert np.array_equal(fill[mask > 0][:, :3], palette[mask[mask > 0]])
            edges = np.zeros(mask.shape, bool)
            edges[1:] |= mask[1:] != mask[:-1]
            edges[:-1] |= mask[1:] != mask[:-1]
            edges[:, 1:] |= mask[:, 1:] != mask[:, :-1]
            edges[:, :-1] |= mask[:, 1:] != mask[:, :-1]
            assert np.array_equal(lines[..., 3] > 0, edges)


def test_large_images_become_small_thumbnails_of_the_same_shape():
    image = np.zeros((300, 500, 3), np.uint8)
    mask = np.zeros((300, 500), np.uint8)
    mask[:, 250:] = 3
    made, palette = make_thumbnails(image, mask[None], 100)
    assert Image.open(io.BytesIO(made["jpg"])).size == (100, 60)
    fill, lines = np.split(np.asarray(Image.open(io.BytesIO(made["png"])).convert("RGBA")), 2)
    assert fill.shape == lines.shape == (60, 100, 4)
    assert fill[:, :50, 3].max() == 0 and fill[:, 50:, 3].min() > 0
    # Black below: the light shade of the class differs most.
    assert palette[3].tolist() == ((PALETTE[3] + np.array(LIGHT)) // 2).tolist()
    assert (fill[:, 50:, :3] == palette[3]).all()
    assert (lines[30, 49], lines[30, 50])[0].tolist() == [0, 0, 0, 255]
    assert lines[30, 50].tolist() == [255, 255, 255, 255]


def test_many_samples_become_a_folder_with_the_thumbnails_beside_the_page(
    dataset, page, tmp_path, monkeypatch
):
    written = write_report(open_folder(dataset), ReportSettings(output=str(tmp_path / "all")))
    assert written == str(tmp_path / "all/index.html")
    data = Page((tmp_path / "all/index.html").read_text(encoding="utf-8")).data
    assert data["samples"] == [row[:4] for row in page.data["samples"]]
    for index, _, _, _, jpg, png in page.data["samples"]:
        for url, ending in ((jpg, "jpg"), (png, "png")):
            path = tmp_path / f"all/thumbs/000/{index:06d}.{ending}"
            assert path.read_bytes() == base64.b64decode(url.split(",")[1])
    monkeypatch.setattr(report, "EMBEDDED", 6)
    folder = tmp_path / "copy"
    stored_runs.run(folder, ("files",))
    assert write_report(open_folder(folder), ReportSettings()) == str(folder / "report/index.html")


def test_the_worst_samples_are_shown_and_all_are_counted(dataset, page, tmp_path):
    path = tmp_path / "worst.html"
    write_report(open_folder(dataset), ReportSettings(output=str(path), worst=3))
    data = Page(path.read_text(encoding="utf-8")).data
    worst = sorted(lines_of(dataset), key=lambda record: (min(record["scores"]), record["index"]))
    assert [row[0] for row in data["samples"]] == sorted(record["index"] for record in worst[:3])
    assert data["classes"] == page.data["classes"]
    assert data["summary"].endswith("the 3 of the smallest scores are shown")


def test_a_report_goes_where_a_report_or_nothing_is(dataset, tmp_path, capsys):
    stored_runs.run(tmp_path / "set", ("files",))
    for _ in range(2):
        assert main(["seediff", "report", str(tmp_path / "set")]) == 0
        assert capsys.readouterr().out == f"open {tmp_path / 'set/report.html'} in a browser\n"
    assert main(["seediff", "verify", str(tmp_path / "set")]) == 0
    mine = tmp_path / "mine.html"
    mine.write_text("<p>my own page")
    with pytest.raises(UserError, match="is there and is not a report"):
        write_report(open_folder(dataset), ReportSettings(output=str(mine)))
    assert mine.read_text() == "<p>my own page"
    with pytest.raises(UserError, match="is not a seediff dataset"):
        write_report(open_folder(tmp_path), ReportSettings())


def test_damage_of_a_sample_is_told(tmp_path):
    stored_runs.run(tmp_path / "set", ("files",))
    (tmp_path / "set/image/000002.png").unlink()
    with pytest.raises(UserError, match="sample 2 of .* is damaged; `seediff verify"):
        write_report(open_folder(tmp_path / "set"), ReportSettings())
    assert not (tmp_path / "set/report.html").exists()
