"""A small random model, three prompts and the command line that runs the driver on them."""

import json

from random_models import random_params, small_config

from seediff_jax.checkpoints import write_folder

# Every letter is a token of the small model, and ten fit.
PROMPTS = [("dog cat", ["dog", "cat"]), ("a cow", ["cow"]), ("cow, cat", ["cat", "cow"])]


def write_inputs(folder):
    """Writes a model folder and a prompt file."""
    config = small_config(folder / "tokenizer")
    write_folder(folder / "model", config, random_params(config))
    lines = [json.dumps({"prompt": prompt, "classes": names}) for prompt, names in PROMPTS]
    (folder / "prompts.jsonl").write_text("\n".join(lines))
    return folder


def command(inputs, output, *more):
    """A command line for 5 images in batches of 2."""
    options = {
        "model": inputs / "model",
        "prompts": inputs / "prompts.jsonl",
        "output": output,
        "num_images": 5,
        "num_steps": 2,
        "batch_size": 2,
        "compilation_cache": "",
    }
    return ["seediff", *(f"--{name}={value}" for name, value in options.items()), *more]


def error_line(capsys):
    """The line that names the error, which is the last and the only one of its kind."""
    text = capsys.readouterr().err
    assert "Traceback" not in text and text.count("seediff: ") == 1
    return text.splitlines()[-1]
