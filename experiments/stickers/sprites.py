"""Sprites: one drawing of one class with an alpha channel, cut to what is not transparent.

    python -m experiments.stickers.sprites --output=/tmp/sprites.png     draws all of them

Archives of `experiments.stickers.fetch` in, one compressed file of RGBA drawings out.
"""

import io
import json
import os
import pathlib
import tarfile
from types import ModuleType

import numpy as np
from absl import flags
from PIL import Image

from experiments.stickers import fetch
from experiments.training import program
from seediff_jax.errors import UserError

# Class -> code points of the drawings, the most typical ones first.
CODE_POINTS = {
    "aeroplane": "2708 1f6e9",
    "bicycle": "1f6b2",
    "bird": "1f986 1f99c",
    "boat": "26f5 1f6a2",
    "bottle": "1f37e 1f37c",
    "bus": "1f68c 1f68d",
    "car": "1f697 1f698",
    "cat": "1f408 1f431",
    "chair": "1fa91",
    "cow": "1f404 1f42e",
    "dog": "1f415 1f436",
    "horse": "1f40e 1f434",
    "motorbike": "1f3cd 1f6f5",
    "person": "1f9cd 1f468",
    "potted plant": "1fab4",
    "sheep": "1f411 1f40f",
    "sofa": "1f6cb",
    "train": "1f686 1f682",
    "tv": "1f4fa",
}
CLASSES = tuple(CODE_POINTS)
SETS = ("noto", "fluent_3d", "fluent_flat", "twemoji")
TRAINING_SETS = tuple(s for s in SETS if not fetch.PACKAGES[s].held_out)
HELD_OUT_SETS = tuple(s for s in SETS if fetch.PACKAGES[s].held_out)
_RASTER = 256


def rasterise(svg: str) -> Image.Image:
    """SVG text -> RGBA with the longer side at 256 pixels."""
    resvg_py = _import_resvg()
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=_RASTER, skip_system_fonts=True))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def _import_resvg() -> ModuleType:
    try:
        import resvg_py
    except ImportError:
        raise UserError(
            "resvg-py, which draws SVG files, is not installed: pip install '.[experiments]'"
        ) from None
    return resvg_py


def cut_to_alpha(image: Image.Image) -> np.ndarray:
    """Returns uint8 `[h, w, 4]`: the smallest box that holds every pixel with alpha >= 8."""
    pixels = np.asarray(image)
    rows, columns = ((pixels[..., 3] >= 8).any(axis=axis) for axis in (1, 0))
    if not rows.any():
        raise ValueError("the drawing is empty")
    (y0, y1), (x0, x1) = (np.flatnonzero(v)[[0, -1]] for v in (rows, columns))
    return pixels[y0 : y1 + 1, x0 : x1 + 1]


def read_set(archive: pathlib.Path, codes: list[str]) -> dict[str, np.ndarray]:
    """Reads the drawings of code points from one npm archive, in any of the three layouts.

    Args:
        archive: of SVG or WebP files named after the code point, or of one icons.json.
        codes: hexadecimal code points, lower case.

    Returns:
        Code point -> uint8 `[h, w, 4]`.
    """
    with tarfile.open(archive) as tar:
        members = {pathlib.PurePosixPath(m.name).name: m for m in tar.getmembers()}

        def read(name: str) -> bytes:
            return tar.extractfile(members[name]).read()

        if "icons.json" in members:
            svgs = _iconify_svgs(json.loads(read("icons.json")), json.loads(read("chars.json")))
            return {code: cut_to_alpha(rasterise(svgs[code])) for code in codes}
        drawings = {}
        for code in codes:
            names = [f"{code}{end}" for end in (".svg", ".webp", "-fe0f.svg", "-fe0f.webp")]
            name = next((name for name in names if name in members), None)
            if name is None:
                raise UserError(f"{archive.name} has no drawing of {code}")
            if name.endswith(".svg"):
                drawings[code] = cut_to_alpha(rasterise(read(name).decode()))
            else:
                drawings[code] = cut_to_alpha(Image.open(io.BytesIO(read(name))).convert("RGBA"))
        return drawings


def _iconify_svgs(icons: dict, chars: dict[str, str]) -> dict[str, str]:
    """Code point -> SVG text, from the icons.json and chars.json of an Iconify package."""
    svgs = {}
    for code, name in chars.items():
        icon = icons["icons"].get(name)
        if icon is None:
            continue
        width, height = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))
        svgs.setdefault(
            code.removesuffix("-fe0f"),
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="{icon.get("left", 0)} {icon.get("top", 0)} {width} {height}">'
            f"{icon['body']}</svg>",
        )
    return svgs


def render_sprites(packages: pathlib.Path, path: pathlib.Path) -> None:
    """Writes all drawings of all sets into one file, keys "set/class/code point"."""
    sprites = {}
    for name in SETS:
        archive = fetch.fetch(fetch.PACKAGES[name], packages)
        drawings = read_set(archive, " ".join(CODE_POINTS.values()).split())
        for class_name, codes in CODE_POINTS.items():
            sprites |= {f"{name}/{class_name}/{code}": drawings[code] for code in codes.split()}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".part.npz")
    np.savez_compressed(aside, **sprites)
    os.replace(aside, path)


def ensure_sprites(path: pathlib.Path) -> pathlib.Path:
    """Returns `path`; downloads and renders the drawings if there is no such file.

    Raises:
        UserError: npm or resvg-py is missing, or the download fails.
    """
    if not path.exists():
        _import_resvg()
        print(f"{path} is missing; downloading and rendering the drawings", flush=True)
        render_sprites(path.parent / "packages", path)
    return path


def load_sprites(path: pathlib.Path, sets: tuple[str, ...]) -> dict[str, list[np.ndarray]]:
    """Class -> drawings of the given sets."""
    with np.load(path) as file:
        chosen = [key for key in file.files if key.split("/")[0] in sets]
        return {c: [file[k] for k in chosen if k.split("/")[1] == c] for c in CLASSES}


def draw_sheet(path: pathlib.Path) -> Image.Image:
    """One row per class, one column per drawing."""
    size = 96
    with np.load(path) as file:
        rows = {c: [k for k in file.files if k.split("/")[1] == c] for c in CLASSES}
        sheet = Image.new("RGB", (size * max(map(len, rows.values())), size * len(rows)), "grey")
        for y, keys in enumerate(rows.values()):
            for x, key in enumerate(keys):
                sprite = Image.fromarray(file[key])
                sprite.thumbnail((size - 8, size - 8))
                sheet.paste(sprite, (x * size + 4, y * size + 4), sprite)
    return sheet


def main(_) -> None:
    """Renders the sprites and draws them."""
    path = pathlib.Path(_SPRITES.value)
    render_sprites(pathlib.Path(_PACKAGES.value), path)
    draw_sheet(path).save(_OUTPUT.value)


if __name__ == "__main__":
    _PACKAGES = flags.DEFINE_string("packages", "runs/stickers/packages", "Folder of the archives.")
    _SPRITES = flags.DEFINE_string("sprites", "runs/stickers/sprites.npz", "File to write.")
    _OUTPUT = flags.DEFINE_string("output", "/tmp/sprites.png", "Sheet to look at.")
    program.run(main)
