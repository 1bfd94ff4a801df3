"""Trains an embedded model on rendered scenes: the VAE first, then text encoder and UNet.

    python -m experiments.training.train --study=stickers

The stages of `--plan` run in order, and the averaged weights are exported. The same command
resumes: a stage that was stopped, or killed, goes on from its last checkpoint, and one that is
finished is left out. `--minutes` ends the command early, with a checkpoint. `--stage=export`
exports the weights so far.

The drawings of stickers are downloaded with npm where the run's folder has no `sprites.npz` (2 MB);
copy that file to a machine without npm. All devices of the machine share each batch. On a GPU give
`--plan=gpu --dtype=bfloat16`. The exported folder is small enough to send back, and `--init_from`
starts a new run from it.
"""

import json
import pathlib
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging

from experiments.training import program
from experiments.training.scenes import load_scenes
from experiments.training.state import Schedule, count_params
from experiments.training.study import Stage, Study, load_study
from experiments.training.unet import train_unet
from experiments.training.vae import train_vae
from experiments.training.vocabulary import copy_synonyms
from experiments.training.weights import initial_folder, keep_initial, load_params, start_params
from seediff_jax.checkpoints.diffusers_folder import save_model
from seediff_jax.errors import UserError
from seediff_jax.models.model import Model

_STUDY = flags.DEFINE_enum("study", "stickers", ["shapes", "stickers"], "Data set and recipe.")
_STAGE = flags.DEFINE_enum("stage", "train", ["train", "export"], "What to do.")
_PLAN = flags.DEFINE_enum(
    "plan", "cpu", ["cpu", "gpu", "more"], "The stages, their lengths and batches."
)
_RUN_DIR = flags.DEFINE_string("run_dir", None, "Data and checkpoints; default runs/STUDY.")
_EXPORT_DIR = flags.DEFINE_string("export_dir", None, "Default RUN_DIR/export.")
_INIT_FROM = flags.DEFINE_string("init_from", None, "A diffusers folder to start a new run from.")
_NUM_SCENES = flags.DEFINE_integer("num_scenes", 30_000, "Rendered scenes.", lower_bound=1)
_EMA_DECAY = flags.DEFINE_float("ema_decay", 0.999, "Of the averaged weights that are exported.")
_MINUTES = flags.DEFINE_float("minutes", 10**6, "Stop, with a checkpoint, after this time.")
_CHECKPOINT_MINUTES = flags.DEFINE_float("checkpoint_minutes", 4, "Time between checkpoints.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the UNet's products.")
_HELD_OUT = 256
_LICENCE = pathlib.Path(__file__).parents[2] / "LICENSE"


def export(study: Study, run_dir: pathlib.Path, folder: pathlib.Path) -> None:
    """Writes the averaged weights as a diffusers folder in float16."""
    config, params = load_params(study, run_dir)
    params = jax.device_get(params)
    vocabulary = json.loads((run_dir / "tokenizer" / "vocab.json").read_text())
    table = params["text_encoder"]["token_embedding"]
    table["embedding"] = copy_synonyms(table["embedding"], vocabulary, study.synonyms)
    model = Model(params=params, config=config, dtype=np.dtype(np.float32))
    save_model(model, folder, dtype=np.float16)
    if study.notice:
        (folder / "NOTICE").write_text(study.notice)
        shutil.copy(_LICENCE, folder / "LICENSE")
    logging.info("wrote %s", folder)


def make_schedule(stage: Stage, minutes: float) -> Schedule:
    """The schedule of a stage that may take so many minutes."""
    return Schedule(
        learning_rate=stage.learning_rate,
        ema_decay=_EMA_DECAY.value,
        decay_from=stage.decay_from,
        decay_steps=stage.decay_to - stage.decay_from,
        steps=stage.steps,
        minutes=minutes,
        checkpoint_minutes=_CHECKPOINT_MINUTES.value,
    )


def train(study: Study, plan: tuple[Stage, ...], run_dir: pathlib.Path) -> bool:
    """Runs the stages of a plan until the time is up; returns whether all are finished."""
    start = time.time()
    # The last scenes are never trained on: the PSNR is measured on them.
    count = _NUM_SCENES.value + _HELD_OUT
    images, captions = load_scenes(run_dir / "scenes.npz", count, study.make_renderer(run_dir))
    images, held_out = images[:-_HELD_OUT], images[-_HELD_OUT:]
    captions = [study.reword(text, index) for index, text in enumerate(captions[:-_HELD_OUT])]
    for stage in plan:
        # The VAE decides the scale of the latents, so the config is made again for each stage.
        inner = stage.kind == "inner"
        if inner and initial_folder(run_dir).exists():
            continue
        config, params = start_params(study, run_dir, inner=inner)
        schedule = make_schedule(stage, _MINUTES.value - (time.time() - start) / 60)
        logging.info("%s; weights %s", stage, {k: count_params(v) for k, v in params.items()})
        if stage.kind in ("unet", "inner"):
            step = train_unet(
                config, params, run_dir, images, captions, dtype=jnp.dtype(_DTYPE.value),
                side=stage.image_side, batch_size=stage.batch_size, schedule=schedule,
                kind=stage.kind,
            )  # fmt: skip
        else:
            step = train_vae(
                config, params, run_dir, images, held_out, decoder_only=stage.kind == "decoder",
                batch_size=stage.batch_size, schedule=schedule,
            )  # fmt: skip
        if step < stage.steps:
            logging.info("time is up; run the same command to resume")
            return False
    return True


def main(_) -> None:
    """Trains and exports, or exports what is trained so far."""
    study = load_study(_STUDY.value)
    run_dir = pathlib.Path(_RUN_DIR.value or f"runs/{study.name}")
    export_dir = pathlib.Path(_EXPORT_DIR.value or run_dir / "export")
    if _STAGE.value == "export":
        return export(study, run_dir, export_dir)
    if _PLAN.value not in study.plans:
        raise UserError(
            f"--plan={_PLAN.value} is not a plan of {study.name}; use {' or '.join(study.plans)}"
        )
    plan = study.plans[_PLAN.value]
    wrong = [stage for stage in plan if stage.batch_size % jax.device_count()]
    if wrong:
        raise UserError(
            f"{wrong[0].batch_size} images per step are not a multiple of "
            f"{jax.device_count()} devices; give JAX fewer of them"
        )
    if _INIT_FROM.value:
        keep_initial(run_dir, pathlib.Path(_INIT_FROM.value))
    if train(study, plan, run_dir):
        export(study, run_dir, export_dir)


if __name__ == "__main__":
    program.run(main)
