"""The demo in Chromium, end to end: an image, live masks, a download, errors, and no network.

pip install -e '.[test,browser]' and python -m pytest -m browser run it. The browser is
/usr/bin/chromium, or what CHROMIUM names.
"""

import io
import os
import re
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.browser

WAIT = 300_000  # milliseconds; the first image compiles the model


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The demo as a program of its own, with a model of few steps."""
    command = [sys.executable, "-m", "seediff_jax.demo.main", "--model=shapes", "--num_steps=4"]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
    }
    log = tmp_path_factory.mktemp("log") / "demo.txt"
    with log.open("wb") as output:
        program = subprocess.Popen(
            [*command, "--port=0"], stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        found = None
        while found is None:  # it may take minutes to load the model; the program ends on errors
            assert program.poll() is None, log.read_text()
            found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
            time.sleep(0.5)
        yield found[0]
        program.terminate()
        program.wait()


@pytest.fixture(scope="module")
def page(address):
    from playwright.sync_api import sync_playwright

    path = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        tab, faults = browser.new_page(viewport={"width": 1280, "height": 1400}), []
        tab.set_default_timeout(WAIT)
        tab.on("pageerror", lambda error: faults.append(str(error)))
        tab.on(
            "request",
            lambda asked: (
                asked.url.startswith((address, "data:", "blob:")) or faults.append(asked.url)
            ),
        )
        tab.goto(address)
        tab.fill("#prompt textarea", "a ring and a star")
        tab.click("#make")
        tab.wait_for_selector("#overlay img")
        yield tab
        if folder := os.environ.get("SCREENSHOTS"):
            tab.screenshot(path=f"{folder}/demo.png", full_page=True)
            tab.set_viewport_size({"width": 390, "height": 844})
            tab.screenshot(path=f"{folder}/demo_phone.png", full_page=True)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 1280
        assert faults == []
        browser.close()


def value(page, name):
    return page.locator(f"#{name} textarea").input_value()


def archive(page):
    """The files of the download."""
    with page.expect_download() as waiting:
        page.click("#download")
    files = zipfile.ZipFile(io.BytesIO(waiting.value.path().read_bytes()))
    return {name: files.read(name) for name in files.namelist()}


def set_number(page, name, number):
    box = page.locator(f"#{name} input[type=number]")
    box.fill(str(number))
    box.press("Enter")
    box.blur()


def wait_for_command(page, flag):
    page.wait_for_function(
        "flag => document.querySelector('#command textarea').value.includes(flag)", arg=flag
    )


def test_image_mask_stages_and_command_are_shown(page):
    assert "--num_steps=4" in value(page, "command")
    assert [line.split(":")[0] for line in value(page, "summary").splitlines()] == ["star", "ring"]
    captions = page.locator("#stages figcaption").all_inner_texts()
    assert {"ring", "star"} == {caption.split(",")[0] for caption in captions}
    assert sum("level" in caption for caption in captions) >= 4
    assert page.locator("#image img").evaluate("image => image.naturalWidth") == 512


def test_another_threshold_changes_the_mask_and_not_the_image(page):
    before = archive(page)
    set_number(page, "threshold", 0.13)
    wait_for_command(page, "--threshold=0.13")
    after = archive(page)
    assert before["image.png"] == after["image.png"]
    areas = [
        np.count_nonzero(np.asarray(Image.open(io.BytesIO(files["mask.png"]))))
        for files in (before, after)
    ]
    assert areas[0] < areas[1]
    assert b'"threshold": 0.13' in after["settings.json"]


def test_another_method_takes_its_published_threshold(page):
    page.locator("#method label", has_text="exponentiation").click()
    wait_for_command(page, "--mask_method=exponentiation")
    page.wait_for_function(
        "() => !document.querySelector('#command textarea').value.includes('--threshold')"
    )
    assert page.locator("#threshold input[type=number]").input_value() == "0.6"


def test_refinement_shows_its_own_threshold(page):
    assert not page.locator("#refined").is_visible()
    set_number(page, "refine", 2)
    wait_for_command(page, "--refine_iterations=2")
    page.wait_for_selector("#refined", state="visible")


def test_an_error_is_one_line_and_leaves_the_image(page):
    shown = page.locator("#image img").get_attribute("src")
    page.fill("#classes textarea", "dog")
    page.click("#make")
    page.wait_for_selector("#message", state="visible")
    message = value(page, "message")
    assert "dog" in message and "\n" not in message
    assert page.locator("#image img").get_attribute("src") == shown
    page.fill("#classes textarea", "")
    page.fill("#prompt textarea", "a star and a ring")
    page.click("#make")
    page.wait_for_selector("#message", state="hidden")
    assert value(page, "summary").startswith("star")
