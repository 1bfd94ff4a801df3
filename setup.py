"""Readme and addresses of the package, from the repository that builds it.

All else is in pyproject.toml. PyPI shows the readme outside of the repository, where relative links
lead nowhere. GitHub names the repository and the commit of a build; builds elsewhere keep the links
as they are.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from setuptools import setup

PAPER = "https://arxiv.org/abs/2507.19808"


def describe(readme: str, environment: Mapping[str, str]) -> dict[str, object]:
    """Makes the arguments of `setup` that depend on the repository.

    Args:
        readme: README.md.
        environment: variables; GITHUB_REPOSITORY, GITHUB_SERVER_URL and GITHUB_SHA are read.
    """
    addresses = {"Paper": PAPER}
    if name := environment.get("GITHUB_REPOSITORY"):
        server = environment.get("GITHUB_SERVER_URL", "https://github.com")
        root, commit = f"{server}/{name}", environment.get("GITHUB_SHA", "HEAD")
        pages = {
            "Documentation": "blob/HEAD/docs/quickstart.md",
            "Changelog": "blob/HEAD/CHANGELOG.md",
        }
        addresses |= {"Repository": root, "Issues": f"{root}/issues"}
        addresses |= {title: f"{root}/{path}" for title, path in pages.items()}
        relative = r"(!?)(\[[^\]]*\])\((?!https?://|#)([^)]+)\)"
        readme = re.sub(
            relative,
            lambda m: f"{m[1]}{m[2]}({root}/{'raw' if m[1] else 'blob'}/{commit}/{m[3]})",
            readme,
        )
    return {
        "long_description": readme,
        "long_description_content_type": "text/markdown",
        "project_urls": addresses,
    }


if __name__ == "__main__":
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    setup(**describe(text, os.environ))
