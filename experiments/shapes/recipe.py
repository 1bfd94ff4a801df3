"""The study "shapes": its words, its networks and the plans of its training."""

from experiments.shapes.render import BACKGROUNDS, LEADS, render_scene
from experiments.training.networks import unet_json, vae_json
from experiments.training.study import Stage, Study
from seediff_jax.prompts.class_lists import SHAPES_CLASSES

WORDS = tuple(
    sorted({*SHAPES_CLASSES, *BACKGROUNDS, "and", "on", "background", *" ".join(LEADS).split()})
)
_LATENT_CHANNELS = 4
_VAE = Stage("vae", 3000, 16, decay_from=2000, decay_to=3000)
PLANS = {
    # Takes two hours on two cores.
    "cpu": (
        _VAE,
        Stage("unet", 4000, 16, image_side=64),
        Stage("unet", 8000, 16, decay_from=6000, decay_to=8000),
    ),
    # Takes a few minutes on a large GPU.
    "gpu": (
        _VAE,
        Stage("unet", 2000, 256, image_side=64),
        Stage("unet", 8000, 128, decay_from=4000, decay_to=8000),
    ),
}
STUDY = Study(
    name="shapes",
    classes=SHAPES_CLASSES,
    words=WORDS,
    make_renderer=lambda run_dir: render_scene,
    unet_json=unet_json(_LATENT_CHANNELS, (32, 64, 128)),
    vae_json=vae_json(_LATENT_CHANNELS),
    plans=PLANS,
)
