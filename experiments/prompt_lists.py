"""Prompt files of the comparisons on real data: one prompt per image of a training set."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence

from experiments.training.program import make_main
from seediff_jax.errors import UserError
from seediff_jax.settings import check_settings, setting

Prompt = tuple[str, Sequence[str]]
"""A text, and the classes that it names."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSettings:
    """Where the training set is, and where its prompts go."""

    data: str | None = setting(None, "Folder of the data set, as it is downloaded.", path=True)
    split: str = setting("train", "Images that prompts are made of.")
    output: str = setting("prompts.jsonl", "File of the prompts.", path=True)

    def __post_init__(self):
        check_settings(self)
        if self.data is None:
            raise UserError("data= is missing; give the folder of the data set")


def write_prompts(path: pathlib.Path, prompts: Iterable[Prompt]) -> int:
    """Writes a prompt file that `seediff --prompts` reads; returns the number of prompts.

    Raises:
        UserError: there is no prompt.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside, count = path.with_name(path.name + ".part"), 0
    with open(aside, "w", encoding="utf-8") as file:
        for prompt, classes in prompts:
            line = {"prompt": prompt, "classes": list(classes)}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            count += 1
    if not count:
        aside.unlink()
        raise UserError("no image shows a class, so there are no prompts")
    os.replace(aside, path)
    return count


def run_program(
    module: str,
    text: str,
    make: Callable[[pathlib.Path, str], Iterable[Prompt]],
    argv: Sequence[str],
) -> int:
    """Runs the command of a data set; errors are one line each.

    Args:
        module: that is run.
        text: its docstring.
        make: folder and split -> the prompts.
        argv: the command line.
    """

    def work(settings: PromptSettings) -> None:
        prompts = make(pathlib.Path(settings.data), settings.split)
        count = write_prompts(pathlib.Path(settings.output), prompts)
        print(f"{count} prompts in {settings.output}")

    return make_main(module, text, PromptSettings, work)(argv)
