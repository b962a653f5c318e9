"""The code blocks of README and docs, and what the comments above them say of how they are run."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
SHELL = ("", "bash", "sh")
SAID = ("text", "toml", "json")  # what is shown, and never run by itself
MARK = re.compile(r"<!-- (not run|needs|nightly|may exit 1|file)(?: \(([^)]+)\))?(?:: (.+?))? -->")
BLOCK = re.compile(r"((?:^<!-- [^\n]+ -->\n+)*)^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        place: page and line.
        language: as it is tagged.
        text: the whole of it.
        file: what to call it, if it is a file that other blocks name.
        marks: kind, part and reason of each comment above it. A comment is about the commands that hold the part, and about all
            without one: `not run` and why; `needs` a package; `nightly` and why; `may exit 1` and why.
    """

    place: str
    language: str
    text: str
    file: str
    marks: tuple[tuple[str, str, str], ...]

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block: line by line, or one where it has a loop."""
        if self.language == "python":
            return [] if self.file else ["python block.py"]
        if self.file or self.language not in SHELL:
            return []
        if re.search(r"^(for|if|while) ", self.text, re.MULTILINE):
            return [self.text]
        return [line for line in re.sub(r"\\\n", " ", self.text).splitlines() if line.strip()]

    def marked(self, kind: str, command: str) -> str:
        """The reason of the mark of that kind on a command; empty without one."""
        return next((reason for each, part, reason in self.marks if each == kind and part in command), "")


def blocks(page: str) -> list[Block]:
    """Every block of a page, in order."""
    text = PAGES[page].read_text()
    return [_block(f"{page}:{text.count(chr(10), 0, found.start(2)) + 1}", found) for found in BLOCK.finditer(text)]


def _block(place: str, found: re.Match[str]) -> Block:
    marks = tuple((kind, part, reason) for kind, part, reason in MARK.findall(found[1]))
    assert all(reason for _, _, reason in marks), f"{place}: a comment gives no reason or name"
    file = next((reason for kind, _, reason in marks if kind == "file"), "")
    known = (*SHELL, *SAID, "python")
    assert file or found[2] in known, f"{place}: nobody knows how to run {found[2]!r}"
    block = Block(place, found[2], found[3], file, tuple(mark for mark in marks if mark[0] != "file"))
    for kind, part, _ in block.marks:
        assert any(part in command for command in block.commands), f"{place}: {kind} is about nothing: {part!r}"
    return block
