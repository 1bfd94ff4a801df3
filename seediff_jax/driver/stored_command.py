"""Reads the flags of a run back from the folder that it wrote, so that nobody repeats them."""

from collections.abc import Mapping
from typing import Any

from seediff_jax.dataset.settings_file import COMMAND, FILTERS, read_dataset_settings
from seediff_jax.driver.config import HostSettings, ModelSource, RunSettings
from seediff_jax.errors import UserError
from seediff_jax.files.folder import Folder
from seediff_jax.masks.config import MaskConfig
from seediff_jax.prompts.settings import PromptSource
from seediff_jax.sampling.config import SamplingConfig
from seediff_jax.settings import settings_of


def read_command(folder: Folder, work: HostSettings) -> dict[str, Any]:
    """Reads the settings that the command line of a run gave; the folder does not keep `work`.

    Returns:
        "source", "prompts", "sampling", "masks" and "run", each a dataclass of settings.

    Raises:
        UserError: it is not the folder of a command that generates images, or it is damaged.
    """
    settings = read_dataset_settings(folder)
    if FILTERS in settings:
        raise UserError(
            f"{folder} is a copy, which no run made; give the folder of the run itself, "
            f"{settings[FILTERS][0].get('source')}"
        )
    if "images_sha256" in settings:
        raise UserError(f"{folder} was written by seediff segment; give that command again")
    if (asked := settings.get(COMMAND)) is None:
        raise UserError(
            f"{folder} does not say what its prompts were made of, because Python code made them; "
            "run that code again"
        )
    stored = settings | {name: asked[name] for name in ("scheduler", "prediction_type")}
    try:
        source = ModelSource(**_fields(ModelSource, stored))
        return {
            "source": source,
            "prompts": PromptSource(model=source.model, **_fields(PromptSource, asked)),
            "sampling": SamplingConfig(**_fields(SamplingConfig, stored)),
            "masks": MaskConfig(**_fields(MaskConfig, stored)),
            "run": RunSettings(output=folder.url, **vars(work), **_fields(RunSettings, stored)),
        }
    except (TypeError, ValueError) as error:
        raise UserError(f"the settings of {folder} cannot be used: {error}") from error


def _fields(config_type: type, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a dataclass of settings, from JSON values by the names of their flags."""
    return {
        name: _value(stored[made.flag])
        for name, made in settings_of(config_type).items()
        if made.flag in stored
    }


def _value(value: Any) -> Any:
    return tuple(map(_value, value)) if isinstance(value, list) else value
