"""One image of Pairs, for notebooks: padding is left out, pictures and heat maps are as named."""

import base64
import html.parser
import io
import sys
import types

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

import seediff_jax
from seediff_jax.attention_maps import AttentionMaps
from seediff_jax.dataset.pictures import overlay
from seediff_jax.errors import UserError
from seediff_jax.pipeline.generate import Pairs, Texts

PROMPTS = ('a "cat" <b>', "a hot dog, a cat")
CLASSES = (("cat",), ("hot dog", "cat"))
# The characters of each token; of the start token, and of the end token, there are none.
TOKENS = (
    ((0, 0), (0, 1), (2, 3), (3, 6), (6, 7), (8, 9), (9, 10), (10, 11)),
    ((0, 0), (0, 1), (2, 5), (6, 9), (9, 10), (11, 12), (13, 16), (0, 0)),
)


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    label_maps = np.zeros((2, 24, 36), np.uint8)
    label_maps[0, 4:12, 4:20] = 1
    label_maps[1, 4:12, 4:20] = 2
    label_maps[1, 15:20, 20:30] = 1
    label_maps[1, 20:, 30:] = 255
    cross = rng.random((2, 3, 6, 2), np.float32)
    return Pairs(
        images=rng.integers(0, 255, (2, 24, 36, 3), np.uint8),
        soft_masks=rng.random((2, 2, 24, 36), np.float32),
        label_maps=label_maps,
        attention_maps=AttentionMaps(cross, {2: rng.random((2, 6, 6), np.float32)}),
        seed_counts=np.array([[3, 0], [2, 4]], np.int32),
        presence=np.array([[0.9, 0], [0.3, 0.8]], np.float32),
        texts=Texts(PROMPTS, CLASSES, TOKENS),
        token_attention=rng.random((2, 3, 6, 8), np.float32),
    )


def test_a_pair_has_its_own_text_and_classes_and_no_padding(pairs):
    assert len(pairs) == 2
    for k, pair in enumerate(pairs):
        c = len(CLASSES[k])
        assert (pair.prompt, pair.classes) == (PROMPTS[k], CLASSES[k])
        np.testing.assert_array_equal(pair.image, pairs.images[k])
        np.testing.assert_array_equal(pair.label_map, pairs.label_maps[k])
        np.testing.assert_array_equal(pair.soft_masks, pairs.soft_masks[k, :c])
        np.testing.assert_array_equal(pair.seed_counts, pairs.seed_counts[k, :c])
        np.testing.assert_array_equal(pair.presence, pairs.presence[k, :c])
        assert pair.cross_attention.shape == (3, 6, c)
    assert pairs[-1].prompt == PROMPTS[1]
    with pytest.raises(IndexError):
        pairs[2]


def test_they_describe_themselves_in_a_line(pairs):
    assert repr(pairs) == f"Pairs(2 of 36 x 24: {PROMPTS[0]!r}, {PROMPTS[1]!r})"
    # 10 * 5 and 16 * 8 of 24 * 36 pixels
    assert repr(pairs[1]) == f"Pair({PROMPTS[1]!r}, 36 x 24, hot dog 5.8%, cat 14.8%)"


def test_an_overlay_is_that_of_datasets(pairs):
    for pair in pairs:
        got = np.asarray(pair.overlay())
        np.testing.assert_array_equal(got, overlay(pair.image, pair.label_map))


def drawn(columns):
    """The heat map of columns `[layers, n0]` of a level of 2 x 3, by OpenCV."""
    field = cv2.resize(columns.mean(axis=0).reshape(2, 3), (36, 24), interpolation=cv2.INTER_CUBIC)
    field = field.clip(0)
    return (field - field.min()) / (field.max() - field.min())


@pytest.mark.parametrize(("name", "column"), [("hot dog", 0), ("cat", 1), ("HOT DOG", 0)])
def test_a_heat_map_of_a_class_is_the_mean_of_the_layers_at_the_size_of_the_image(
    pairs, name, column
):
    expected = drawn(pairs.attention_maps.cross_attention[1, :, :, column])
    # float32 sums of 16 taps in another order
    np.testing.assert_allclose(pairs[1].heat_map(name), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("words", "occurrence", "positions"),
    [
        ("hot", None, [2]),
        ("a", None, [1, 5]),
        ("a", 0, [1]),
        ("A", 1, [5]),
        ("dog, a", None, [3, 4, 5]),
        ("cat", 0, [6]),  # the name of a class; with an occurrence, the word of the prompt is meant
        (",", None, [4]),
        ([0], None, [0]),
        (range(2, 4), None, [2, 3]),
    ],
)
def test_a_heat_map_of_words_is_that_of_their_tokens(pairs, words, occurrence, positions):
    if isinstance(words, str):
        assert pairs[1].token_positions(words, occurrence) == tuple(positions)
    expected = drawn(pairs.token_attention[1][..., positions].mean(axis=-1))
    np.testing.assert_allclose(pairs[1].heat_map(words, occurrence), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("words", "occurrence", "message"),
    [
        ("sofa", None, "the prompt 'a hot dog, a cat' has no 'sofa'; its classes are hot dog, cat"),
        ("do", None, "has no 'do'"),
        ("", None, "has no ''"),
        ("a", 2, r"occurrence=2 must lie in 0\.\.1: the prompt .* has 'a' 2 times"),
        ("a", -1, "occurrence=-1 must"),
        ([8], None, r"tokens \[8\] must be at least one position in 0\.\.7"),
        ([], None, r"tokens \[\] must"),
    ],
)
def test_a_heat_map_of_something_else_is_refused(pairs, words, occurrence, message):
    with pytest.raises(UserError, match=message):
        pairs[1].heat_map(words, occurrence)


def test_padding_is_told(pairs):
    np.testing.assert_array_equal(pairs.is_class, [[True, False], [True, True]])


def test_notebooks_show_one_picture_per_pair_and_the_prompt_as_text(pairs):
    class Images(html.parser.HTMLParser):
        found = ()

        def handle_starttag(self, tag, attributes):
            if tag != "div":
                self.found += ((tag, dict(attributes)),)

    parser = Images()
    parser.feed(pairs._repr_html_())
    assert [tag for tag, _ in parser.found] == ["img", "img"]
    assert tuple(attributes["alt"] for _, attributes in parser.found) == PROMPTS
    for pair, (_, attributes) in zip(pairs, parser.found, strict=True):
        head, content = attributes["src"].split(",")
        assert head == "data:image/png;base64"
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
        np.testing.assert_array_equal(shown, np.asarray(pair.picture()))


def test_show_opens_the_picture(pairs, monkeypatch):
    opened = []
    monkeypatch.setattr(Image.Image, "show", lambda image, title: opened.append((image, title)))
    pairs[0].show()
    ((image, title),) = opened
    assert title == PROMPTS[0] and image.size == pairs[0].picture().size


def test_in_a_notebook_show_displays_the_pair_in_the_cell(pairs, monkeypatch):
    shown = []
    ipython = types.SimpleNamespace(
        get_ipython=lambda: types.SimpleNamespace(kernel=object()),
        display=types.SimpleNamespace(display=shown.append),
    )
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    pair = pairs[0]
    pair.show()
    assert shown == [pair]


def test_texts_are_no_reason_to_compile_again(pairs):
    traces = []

    @jax.jit
    def count(pairs):
        traces.append(pairs)
        return pairs.seed_counts.sum()

    assert count(pairs) == 9
    other = pairs.replace(texts=Texts(("x", "y"), (("x",), ("y",))))
    assert count(other) == 9 and len(traces) == 1


def test_the_help_of_the_package_names_everything_that_is_public():
    words = set(seediff_jax.__doc__.replace(",", " ").split())
    assert set(seediff_jax.__all__) <= words


def test_a_step_of_a_sampler_can_be_made_by_public_names_alone():
    """Against the closed form of DDIM (arXiv 2010.02502, equation 12, without noise)."""
    config = seediff_jax.scheduler_config({"_class_name": "DDIMScheduler", "clip_sample": False})
    rng = np.random.default_rng(0)
    latents, noise = rng.standard_normal((2, 1, 2, 2, 4)).astype(np.float32)
    first = jax.tree.map(lambda values: values[0], seediff_jax.make_steps(config, 10))
    got, _ = seediff_jax.scheduler_step(
        config,
        seediff_jax.make_noise_schedule(config),
        seediff_jax.init_scheduler_state(config, latents),
        seediff_jax.scale_input(config, latents, first),
        noise,
        first,
    )
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    now, then = alphas[900], alphas[800]
    clean = (latents - np.sqrt(1 - now) * noise) / np.sqrt(now)
    expected = np.sqrt(then) * clean + np.sqrt(1 - then) * noise
    # float32, after a division by sqrt(alpha) = 0.01
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
