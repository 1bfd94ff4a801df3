"""Pages of the site that follow from the repository: overview, changes, and public names.

mkdocs.yml names this as its hook. Links that lead out of docs/ become plain text, because the site
has no such pages.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]


def api_page() -> str:
    """One section per group of public names, in the order of the package's docstring."""
    import seediff_jax

    modules = seediff_jax._MODULE_OF
    table = re.search(r"function of its own:\n\n(.*?)\n\n", seediff_jax.__doc__, re.DOTALL)[1]
    groups: dict[str, list[str]] = {}
    for line in table.splitlines():
        title, _, names = re.match(r" {4}(\S[\w ]*?)?( {2,}|$)(.*)", line).groups()
        groups.setdefault(title or next(reversed(groups)), []).extend(re.findall(r"\w+", names))
    parts = ["# Python\n\nAll public names of `seediff_jax`, by what they are for.\n"]
    for title, names in groups.items():
        parts.append(f"\n## {title[0].upper()}{title[1:]}\n")
        parts += [f"\n::: seediff_jax.{modules[name]}.{name}\n" for name in names]
    return "".join(parts)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that docs/ does not have, and leaves out what is no page."""
    texts = {
        "index.md": (ROOT / "README.md").read_text(encoding="utf-8"),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
        "api.md": api_page(),
    }
    for name, text in texts.items():
        text = text.replace("](docs/", "](").replace("](CHANGELOG.md)", "](changelog.md)")
        files.append(File.generated(config, name, content=text))
    files.remove(files.get_file_from_path("site_pages.py"))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Makes plain text of links to files outside of docs/."""
    return re.sub(r"\[([^\]]+)\]\((?:\.\./[^)]+|LICENSE)\)", r"\1", markdown)
