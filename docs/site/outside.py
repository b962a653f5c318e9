"""A hook of mkdocs: pages that lie outside docs/ are part of the site, and links to them lead there."""

import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent.parent
PAGES = ("SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md")


def on_files(files, config):
    """Add the pages from outside."""
    for page in PAGES:
        files.append(File.generated(config, page, content=(ROOT / page).read_text()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn links that are right in the repository into links that are right in the site."""
    if page.file.src_uri in PAGES:
        up = "../" * page.file.src_uri.count("/")
        return re.sub(r"\]\((?:\.\./)*docs/", f"]({up}", markdown)
    return re.sub(rf"\]\(\.\./({'|'.join(map(re.escape, PAGES))})", r"](\1", markdown)
