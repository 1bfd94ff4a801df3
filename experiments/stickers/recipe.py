"""The study "stickers": its words, its networks and the plans of its training."""

import pathlib
import re

from experiments.stickers.scenes import BACKGROUNDS, LEADS, TrainingRenderer
from experiments.stickers.sprites import CLASSES, ensure_sprites
from experiments.training.networks import unet_json, vae_json
from experiments.training.study import Stage, Study

# Every fourth caption has the spelling of VOC's lists.
_SPELLINGS = {"potted plant": "pottedplant", "tv": "tvmonitor"}
_WORDS = [
    *CLASSES,
    *_SPELLINGS.values(),
    *BACKGROUNDS,
    *LEADS,
    "photographic",
    "an",
    "and",
    "on",
    "background",
]
WORDS = tuple(sorted(set(" ".join(_WORDS).split())))
_SYNONYMS = {
    "airplane": "aeroplane",
    "plane": "aeroplane",
    "bike": "bicycle",
    "automobile": "car",
    "kitten": "cat",
    "puppy": "dog",
    "motorcycle": "motorbike",
    "man": "person",
    "woman": "person",
    "couch": "sofa",
    "television": "tv",
    "monitor": "tv",
}
# A linear code of these scenes keeps 26 dB with four channels, 28 with six, 30 with eight.
_LATENT_CHANNELS = 6


def reword(caption: str, index: int) -> str:
    """The caption that training scene `index` is shown with."""
    if index % 4 == 3:
        for name, other in _SPELLINGS.items():
            caption = re.sub(rf"\b{name}\b", other, caption)
    return caption


def make_renderer(run_dir: pathlib.Path) -> TrainingRenderer:
    """Renders with the drawings of a run's folder; downloads them where there are none."""
    return TrainingRenderer(ensure_sprites(run_dir / "sprites.npz"))


PLANS = {
    # Takes hours on two cores.
    "cpu": (
        Stage("vae", 2400, 16, learning_rate=2e-3, decay_from=1400, decay_to=2400),
        Stage("inner", 40_000, 16, image_side=64),
        Stage("unet", 20_000, 16, decay_from=14_000, decay_to=20_000),
        Stage("decoder", 8000, 16, decay_from=4000, decay_to=8000),
    ),
    # With `--init_from`: what the weights in the package had after a short run of the plan "cpu".
    "more": (Stage("unet", 6000, 16, decay_from=4000, decay_to=6000),),
    # Takes ten minutes on a large GPU.
    "gpu": (
        Stage("vae", 5000, 128, learning_rate=2e-3, decay_from=3000, decay_to=5000),
        Stage("inner", 6000, 256, image_side=64),
        Stage("unet", 12_000, 128, decay_from=8_000, decay_to=12_000),
        Stage("decoder", 3000, 128, decay_from=1500, decay_to=3000),
    ),
}
NOTICE = """\
The weights in this folder were trained on scenes rendered from these graphics:

- Noto Emoji, copyright Google LLC, Apache License 2.0
  (npm package @iconify-json/noto 1.2.9, https://github.com/googlefonts/noto-emoji).
  The licence is LICENSE in this folder, which the weights are under, too.
- Fluent Emoji, copyright (c) Microsoft Corporation, MIT License, see below
  (npm packages @lobehub/fluent-emoji-3d 1.1.0 and @lobehub/fluent-emoji-flat 1.1.0,
  https://github.com/microsoft/fluentui-emoji)

No drawing of Twemoji was used. Evaluations show it as an unseen style: Twemoji, copyright Twitter,
Inc. and other contributors, CC-BY 4.0 (npm package @twemoji/svg 15.0.0).

MIT License

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction,
including without limitation the rights to use, copy, modify, merge, publish, distribute,
sublicense, and/or sell copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or
substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT
NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND
NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES
OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN
CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
STUDY = Study(
    name="stickers",
    classes=CLASSES,
    words=WORDS,
    reword=reword,
    make_renderer=make_renderer,
    unet_json=unet_json(_LATENT_CHANNELS, (32, 32, 64, 192)),
    vae_json=vae_json(_LATENT_CHANNELS),
    plans=PLANS,
    notice=NOTICE,
    synonyms=_SYNONYMS,
)
