"""A small random model, three prompts, and a command line of the driver for them."""

import json

from tests.helpers.model_folders import write_folder
from tests.helpers.random_models import random_params, small_config

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
    """Makes a command line for 5 images in batches of 2."""
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
    """Returns the line with the error, which must be the last line and the only such line."""
    text = capsys.readouterr().err
    assert "Traceback" not in text and text.count("seediff: ") == 1
    return text.splitlines()[-1]


def tree(folder):
    """Every file of a local folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def rows(folder):
    """The manifest."""
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
