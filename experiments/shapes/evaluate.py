"""Quality of masks and images of the embedded model: one table, printed and kept as JSON.

    python -m experiments.shapes.evaluate --output=results.json

Everything is fixed beforehand: thresholds are the published ones of each method, seeds are used
nowhere else. All methods read the same captured attention of the same images. IoU is that of an
object with its truth; the truth of a generated image is read from its colours, and that reading is
itself measured on rendered scenes after a round trip through the VAE.
"""

import collections
import functools
import json
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments.shapes.recognise import train_classifier
from experiments.shapes.render import read_label_map, render_scene
from seediff_jax import generate, load_model
from seediff_jax.label_maps import label_map
from seediff_jax.masks import PUBLISHED_THRESHOLDS, MaskConfig, class_soft_mask
from seediff_jax.model import decode_latents, encode_images, encode_text, predict_noise
from seediff_jax.models.transformer import TokenColumns
from seediff_jax.prompts import SHAPES_CLASSES
from seediff_jax.schedulers import add_noise, make_noise_schedule
from seediff_jax.tokenizer import class_token_mask

_MODEL = flags.DEFINE_string("model", "shapes", "Model to measure.")
_OUTPUT = flags.DEFINE_string("output", None, "Where to write the figures (JSON).")
_STEPS = flags.DEFINE_integer("num_steps", 50, "Sampling steps.", lower_bound=1)
_GUIDANCE = flags.DEFINE_float("guidance_scale", 7.5, "Classifier-free guidance.")
_SINGLES = flags.DEFINE_integer("singles", 128, "Generated images of one object.")
_PAIRS = flags.DEFINE_integer("pairs", 64, "Generated images of two objects.")
_RENDERED = flags.DEFINE_integer("rendered", 256, "Rendered images with exact masks.")
_BATCH = 8
_FIRST_SCENE, _RNG_SEED, _NOISE_TIMESTEP = 90_000_000, 20_260, 200

METHODS = {
    "SeeDiff, published": MaskConfig(),
    "SeeDiff without background step": MaskConfig(background=False),
    "cross-attention only": MaskConfig(method="cross_attention"),
    "self-attention exponentiation": MaskConfig(method="exponentiation"),
}


@functools.partial(jax.jit, static_argnames=("config", "image_side"))
def _label_maps(cross_attention, self_attention, image_side: int, config: MaskConfig):
    """`[b, layers, n0, c]`, `{side: [b, n, n]}` -> uint8 `[b, H, W]`, k + 1 for class k."""
    one_class = functools.partial(class_soft_mask, image_side=image_side, config=config)
    threshold, _ = PUBLISHED_THRESHOLDS[config.method]

    def one_image(cross_attention, self_attention):
        soft = jax.vmap(one_class, in_axes=(-1, None))(cross_attention, self_attention)
        return label_map(soft, threshold)

    return jax.vmap(one_image)(cross_attention, self_attention)


class Scores:
    """IoU of every object, by method and class."""

    def __init__(self):
        self.values = collections.defaultdict(list)

    def add(self, maps, truths: list[np.ndarray], classes: list[tuple[str, ...]]) -> None:
        """Adds a batch: AttentionMaps, true label maps and the class names of each image."""
        for method, config in METHODS.items():
            side = truths[0].shape[0]
            found = _label_maps(maps.cross_attention, maps.self_attention, side, config)
            for label, truth, names in zip(np.asarray(found), truths, classes, strict=True):
                for k, name in enumerate(names):
                    self.values[method, name].append(_iou(label == k + 1, _is(truth, name)))

    def table(self) -> dict[str, dict[str, float]]:
        """Method -> mean over all objects, and the mean of every class."""
        rows = {}
        for method in METHODS:
            per_class = {n: self.values[method, n] for n in SHAPES_CLASSES}
            rows[method] = {"mean": float(np.mean(sum(per_class.values(), [])))}
            rows[method] |= {name: float(np.mean(v)) for name, v in per_class.items() if v}
        return rows


def _is(label_map_: np.ndarray, name: str) -> np.ndarray:
    return label_map_ == SHAPES_CLASSES.index(name) + 1


def _iou(found: np.ndarray, truth: np.ndarray) -> float:
    """Intersection over union; an object that is nowhere in the image counts as missed, 0."""
    return float((found & truth).sum() / max(1, (found | truth).sum()))


def measure_generated(model, count: int, objects: int, recognise) -> dict:
    """Generates images of one or two objects and compares masks with the colours."""
    scores, recognised = Scores(), []
    for start in range(0, count, _BATCH):
        indices = range(start, start + _BATCH)
        classes = [
            tuple(SHAPES_CLASSES[(i + k * (1 + i // 8 % 7)) % 8] for k in range(objects))
            for i in indices
        ]
        template = "a photo of " + " and ".join("a {}" for _ in range(objects))
        pairs = generate(
            model,
            [template.format(*names) for names in classes],
            [list(names) for names in classes],
            rng_seed=_RNG_SEED + objects,
            first_index=start,
            num_steps=_STEPS.value,
            guidance_scale=_GUIDANCE.value,
        )
        images = np.asarray(pairs.images)
        truths = [read_label_map(i, names) for i, names in zip(images, classes, strict=True)]
        scores.add(pairs.attention_maps, truths, classes)
        wanted = [SHAPES_CLASSES.index(names[0]) for names in classes]
        recognised += (recognise(images) == wanted).tolist()
    result = {"images": count, "iou": scores.table()}
    return result | ({"recognised": float(np.mean(recognised))} if objects == 1 else {})


def measure_rendered(model, count: int) -> dict:
    """Noises rendered scenes to one timestep and reads the attention of one UNet call."""
    scores, reading = Scores(), []
    schedule = make_noise_schedule(model.scheduler_config)
    for start in range(0, count, _BATCH):
        scenes = [render_scene(_FIRST_SCENE + i) for i in range(start, start + _BATCH)]
        images = np.stack([scene.image for scene in scenes]).astype(np.float32) / 127.5 - 1
        latents = encode_images(model, jnp.asarray(images))
        decoded = np.clip(np.asarray(decode_latents(model, latents)) * 127.5 + 127.5, 0, 255)
        for scene, image in zip(scenes, decoded.round().astype(np.uint8), strict=True):
            read = read_label_map(image, scene.classes)
            reading += [_iou(_is(read, n), _is(scene.label_map, n)) for n in scene.classes]
        noise = jax.random.normal(jax.random.fold_in(jax.random.key(7), start), latents.shape)
        timesteps = jnp.full((len(scenes),), _NOISE_TIMESTEP)
        prompts = [scene.caption for scene in scenes]
        classes = [list(scene.classes) for scene in scenes]
        mask = class_token_mask(model.tokenizer, prompts, classes).astype(np.float32)
        weights = mask / np.maximum(mask.sum(axis=-1, keepdims=True), 1)
        _, maps = predict_noise(
            model,
            add_noise(schedule, latents, noise, timesteps),
            timesteps,
            encode_text(model, model.tokenizer.encode(prompts)),
            TokenColumns(jnp.asarray(weights.swapaxes(1, 2))),
        )
        scores.add(maps, [scene.label_map for scene in scenes], [s.classes for s in scenes])
    return {"images": count, "iou": scores.table(), "colour reading": float(np.mean(reading))}


def print_table(results: dict) -> None:
    """Prints the figures as Markdown."""
    sets = ("one object", "two objects", "rendered")
    print("| method | " + " | ".join(f"{s} (n={results[s]['images']})" for s in sets) + " |")
    print("|---|---|---|---|")
    for method in METHODS:
        means = [f"{results[s]['iou'][method]['mean']:.3f}" for s in sets]
        print(f"| {method} | " + " | ".join(means) + " |")
    print("\nSeeDiff, published, by class:")
    for s in sets:
        row = results[s]["iou"]["SeeDiff, published"]
        print(f"- {s}: " + ", ".join(f"{n} {row[n]:.2f}" for n in SHAPES_CLASSES if n in row))
    print(f"\nrecognised: {results['one object']['recognised']:.3f}")
    print(f"classifier on rendered scenes: {results['classifier accuracy']:.3f}")
    print(f"IoU of the truth read from colour: {results['rendered']['colour reading']:.3f}")


def main(_) -> None:
    """Measures and prints."""
    start = time.time()
    model = load_model(_MODEL.value)
    recognise, accuracy = train_classifier()
    results = {
        "model": model.weights_hash,
        "num_steps": _STEPS.value,
        "guidance_scale": _GUIDANCE.value,
        "classifier accuracy": accuracy,
        "one object": measure_generated(model, _SINGLES.value, 1, recognise),
        "two objects": measure_generated(model, _PAIRS.value, 2, recognise),
        "rendered": measure_rendered(model, _RENDERED.value),
    }
    results["seconds"] = round(time.time() - start)
    print_table(results)
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
