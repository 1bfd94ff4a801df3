"""Downloads the graphics of the scenes: npm packages by name and version, hashes checked.

    python -m experiments.stickers.fetch --output=runs/stickers/packages

Noto, Fluent 3D and Fluent flat are trained on. Twemoji is held out: only evaluations read it. The
project itself contains none of the graphics.
"""

import base64
import dataclasses
import hashlib
import os
import pathlib
import subprocess
import tempfile

from absl import flags, logging

from experiments.training import program
from seediff_jax.errors import UserError, shown


@dataclasses.dataclass(frozen=True)
class Package:
    """An npm package.

    Attributes:
        name: name in the registry.
        version: exact version.
        sha512: base64 digest of the archive, as in a package lock's `integrity`.
        licence: licence of the graphics.
        held_out: True for graphics that no training scene shows.
    """

    name: str
    version: str
    sha512: str
    licence: str
    held_out: bool = False

    @property
    def filename(self) -> str:
        """Name of the archive that `npm pack` writes."""
        return self.name.lstrip("@").replace("/", "-") + f"-{self.version}.tgz"


PACKAGES = {
    "noto": Package(
        "@iconify-json/noto",
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Apache-2.0",
    ),
    "fluent_3d": Package(
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g==",
        "MIT",
    ),
    "fluent_flat": Package(
        "@lobehub/fluent-emoji-flat",
        "1.1.0",
        "lPYCg8+N56MIj+iOgeBeH6AF0tneXxJCvgi41rOTjAWpA5rU2WUcmU1fiIXouEe8GrSTarWCYLY2ML+rdLRHsg==",
        "MIT",
    ),
    "twemoji": Package(
        "@twemoji/svg",
        "15.0.0",
        "ZSPef2B6nBaYnfgdTbAy4jgW95o7pi2xPGwGCU+WMTxo7J6B1lMPTWwSq/wTuiMq+N0khQ90CcvYp1wFoQpo/w==",
        "CC-BY-4.0",
        held_out=True,
    ),
    "panoramas": Package(
        "@pmndrs/assets",
        "1.7.0",
        "zHmKNS+3Jvu9K3zJBQfYQKT9Pn9IQt8s0q/eJC3CXKpWpyg6IBa+ivN9NgDn+fDT2AVjUh2YRZ//GXUueuAdCg==",
        "CC0-1.0",
    ),
}


def check_hash(data: bytes, package: Package) -> None:
    """Raises UserError unless `data` is the archive of the package."""
    found = base64.b64encode(hashlib.sha512(data).digest()).decode()
    if found != package.sha512:
        raise UserError(
            f"{package.name}@{package.version}: sha512 is {found}, expected {package.sha512}; "
            "remove the file and fetch it again"
        )


def _pack(name: str, folder: pathlib.Path) -> None:
    """Downloads an archive with npm."""
    advice = "or copy sprites.npz from another machine into the folder of the run"
    command = ["npm", "pack", "--ignore-scripts", name]
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        reason = f"npm, which downloads {name}, was not found"
        raise UserError(f"{reason}; install it, {advice}") from None
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.strip()] or ["no message"]
        reason = shown(lines[0], 200)
        raise UserError(f"npm cannot download {name} ({reason}); try again, {advice}") from None


def fetch(package: Package, folder: pathlib.Path) -> pathlib.Path:
    """Returns the checked archive of the package in `folder`; downloads it if it is not there.

    Raises:
        UserError: npm is missing or fails, or the archive is not the expected one.
    """
    path = folder / package.filename
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            _pack(f"{package.name}@{package.version}", pathlib.Path(aside))
            check_hash((pathlib.Path(aside) / package.filename).read_bytes(), package)
            os.replace(pathlib.Path(aside) / package.filename, path)
    check_hash(path.read_bytes(), package)
    return path


def main(_) -> None:
    """Downloads every package."""
    for package in PACKAGES.values():
        logging.info("%s (%s)", fetch(package, pathlib.Path(_OUTPUT.value)), package.licence)


if __name__ == "__main__":
    _OUTPUT = flags.DEFINE_string("output", "runs/stickers/packages", "Folder of the archives.")
    program.run(main)
