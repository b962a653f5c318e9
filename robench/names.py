"""How names become objects: a row of a built-in table, a `module:object` text, or an entry point of an installed package.

Tables hold texts only: nothing is imported until a named object is used, so listing is instant and a plug-in nobody names
never runs. The tables are in `registry.py`.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import re
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from robench.errors import UsageError, first_line, nearest, unknown
from robench.spec import assignment

_OPTIONS = re.compile(r"(.*?)@(\s*[\w.]+\s*=.*)", re.DOTALL)  # a name may hold an @ that no KEY= follows
_COMMA = re.compile(r",(?![^\[{]*[\]}])")  # a comma that is not inside a list or table


@dataclass(frozen=True)
class Entry:
    """One row of a registry.

    Attributes:
        name: what people type. A name that ends in ":" is a family: what is typed after it fills the option `family`.
        target: where the object lives, as `module:object`.
        summary: one line for `robench list`.
        options: values this row fixes; a person may override them after an `@`.
        facts: further columns for `robench list`, such as norms and paper.
        family: the option that the text after a family name fills.
        version: raised whenever the row's results change, so that old cells are not mistaken for new ones.
        exempt: the laws of `robench.testing` an attack does not obey, each with the reason.
        aliases: other names of options, as papers or other spellings have them, each with the option it means.
    """

    name: str
    target: str
    summary: str
    options: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    family: str = ""
    version: int = 1
    exempt: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    def spelled(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options by their own names, so that whatever they were called, the same settings are the same run.

        Raises:
            UsageError: if one is given under two names.
        """
        found: dict[str, Any] = {}
        for key, value in options.items():
            name = self.aliases.get(key, key)
            if name in found:
                key = key if key != name else next(k for k in options if self.aliases.get(k) == name)
                raise UsageError(f"{' and '.join(sorted((key, name)))} are one option of {self.name}: give one of them")
            found[name] = value
        return found


class Registry:
    """A table of names, open to `module:object` texts and to entry points.

    Args:
        kind: what the names are, for messages: `attack`, `method`, `dataset` or `model`.
        entries: the built-in rows.
        elsewhere: where prefixes that name no row here belong, in words, by prefix with its colon.

    Raises:
        ValueError: if two rows have the same name.
    """

    def __init__(self, kind: str, entries: Iterable[Entry], elsewhere: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self.elsewhere = elsewhere or {}
        self.rows: dict[str, Entry] = {}
        for entry in entries:
            if entry.name in self.rows:
                raise ValueError(f"{kind} {entry.name!r} is registered twice")
            self.rows[entry.name] = entry

    def plugins(self) -> dict[str, EntryPoint]:
        """The entry points of installed packages, by name; none is imported.

        Raises:
            UsageError: if a plug-in takes a built-in name, or two take the same.
        """
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=f"robench.{self.kind}s"):
            taken = self.rows.get(point.name) or found.get(point.name)
            if taken is not None:
                raise UsageError(
                    f"the plug-in {self.kind} {point.name!r} ({point.value}) has a name that is taken; "
                    "uninstall it, or name it by its module:object"
                )
            found[point.name] = point
        return found

    def names(self) -> list[str]:
        """Every name that can be typed, built-in rows first."""
        return [*self.rows, *self.plugins()]

    def entry(self, text: str) -> Entry:
        """The row for what was typed, with options after an `@` merged in.

        Args:
            text: `NAME`, `NAME@key=value,key=value`, `FAMILY:NAME` or `module:object`.

        Returns:
            The row; its `name` is what was typed without the options.

        Raises:
            UsageError: if nobody knows the name; the message suggests the nearest.
        """
        found = _OPTIONS.fullmatch(text)
        name, tail = (found[1], found[2]) if found else (text, "")
        if not found and "@" in text and ":" not in text:
            name, _, tail = text.partition("@")
            pairs(tail, text)  # which says what is missing
        if not name.strip():
            raise UsageError(f"{self.kind} {text!r} has no name: robench list {self.kind}s")
        return self._overridden(self._row(name.strip()), pairs(tail, text) if tail else {})

    def _row(self, name: str) -> Entry:
        if name in self.rows and not self.rows[name].family:
            return self.rows[name]
        if (shorthand := re.fullmatch(r"pgd-(\d+)(?:x(\d+))?", name)) and self.kind == "attack":
            options = {"steps": int(shorthand[1]), "restarts": int(shorthand[2] or 1)}
            return replace(self.rows["pgd"], name=name, options=options)
        script = name.removesuffix(":")
        if script.endswith(".py") and ":" not in script:
            raise UsageError(f"{self.kind} {name!r} is a file: name what stands in it, {_script(script)}")
        if ":" in name:
            prefix, _, rest = name.partition(":")
            family = self.rows.get(f"{prefix}:")
            if family is None and (place := self.elsewhere.get(f"{prefix}:")):
                raise UsageError(f"{self.kind} {name!r}: {place} {name}")
            if family is None:
                return Entry(name, target=name, summary="by module:object")
            if not rest:
                raise UsageError(f"{self.kind} {name!r}: write {prefix}:{family.family.upper()}")
            return replace(family, name=name, options={**family.options, family.family: rest})
        plugin = self.plugins().get(name)
        if plugin is not None:
            return Entry(name, plugin.value, summary="plug-in")
        if "," in name and all(part.strip() in self.rows for part in name.split(",")):
            raise UsageError(f"{self.kind} {name!r}: name one at a time, and give the option again for the next")
        raise unknown(self.kind, name, self.names(), f"robench list {self.kind}s")

    def _overridden(self, row: Entry, given: Mapping[str, Any]) -> Entry:
        return replace(row, options={**row.options, **given}) if given else row

    def load(self, entry: Entry) -> Any:
        """Import what a row points to.

        Raises:
            UsageError: if the module or the object is not there.
        """
        module, _, name = entry.target.rpartition(":")
        try:
            found: Any = _module(module)
            where = module
            for part in name.split("."):
                if not hasattr(found, part):
                    raise UsageError(f"{self.kind} {entry.name!r}: cannot import {_absent(found, part, where)}")
                found, where = getattr(found, part), f"{module}:{part}"
        except UsageError:
            raise
        except (Exception, SystemExit) as error:  # whatever a module from elsewhere does when it is imported
            if isinstance(error, SystemExit) and error.code == 128 + signal.SIGTERM:
                raise
            path = Path(*module.split(".")).with_suffix(".py")
            there = isinstance(error, ModuleNotFoundError) and path.is_file()
            guess = f". Did you mean {path}:{name}?" if there else ""
            raise UsageError(
                f"{self.kind} {entry.name!r}: cannot import {module}: {type(error).__name__}: {first_line(error)}{guess}"
            ) from error
        return found


def seek(table: Registry, text: str) -> None:
    """Say at once that what a text names cannot be imported, where that is seen without running it.

    Raises:
        UsageError: as `Registry.load` does.
    """
    entry = table.entry(text)
    module, _, name = entry.target.rpartition(":")
    if not module.endswith(".py"):
        seen = importlib.util.find_spec(module.partition(".")[0] or "robench") is not None
    else:
        try:
            ast.parse(source := Path(module).read_bytes())
            words = (name.partition(".")[0].encode(), b"import *", b"__getattr__", b"globals")
            seen = any(word in source for word in words)
        except (OSError, SyntaxError, ValueError):
            seen = False
    if not seen:
        table.load(entry)


def pairs(text: str, whole: str) -> dict[str, Any]:
    """Read `KEY=VALUE,KEY=VALUE`; a comma inside a list or table does not part.

    Args:
        text: what stands behind the `@`.
        whole: what was typed, for messages.

    Raises:
        UsageError: for an item that is none, or a key that comes twice.
    """
    found: dict[str, Any] = {}
    for item in _COMMA.split(text):
        if not item.partition("=")[0].strip() or "=" not in item:
            name = whole.removesuffix(text).removesuffix("@")
            raise UsageError(f"{whole}: expected {name}@KEY=VALUE,KEY=VALUE, and {item!r} is no KEY=VALUE")
        key, value = assignment(item)
        if key in found:
            raise UsageError(f"{whole}: {key} is given twice; leave one away")
        found[key] = value
    return found


def _script(path: str) -> str:
    """How one names an object of a script, by what it defines; the script is read and not run."""
    defined: list[str] = []
    with contextlib.suppress(OSError, SyntaxError, ValueError):
        for node in ast.parse(Path(path).read_bytes()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                defined.append(node.name)
    there = f" (it has {_listed(defined)})" if defined else "" if Path(path).is_file() else ", and it is not there"
    return f"{path}:{defined[0] if len(defined) == 1 else 'NAME'}{there}"


def _absent(module: Any, name: str, where: str) -> str:
    """What is not in a module or class, and what is."""
    known = [each for each in vars(module) if not each.startswith("_")] if hasattr(module, "__dict__") else []
    own = [each for each in known if getattr(getattr(module, each), "__module__", "") == module.__name__]
    match = nearest(name, known)
    guess = f" Did you mean {match!r}?" if match else ""
    there = f" ({where} has {_listed(own)})" if own else ""
    return f"{name!r}, which is not in {where}.{guess}{there}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _module(name: str) -> Any:
    """Import a module by dotted name or by the path of its file, which may import from files beside it."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name).resolve()
    dotted = f"robench_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(dotted, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"there is no file {path}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # at the end, so that nothing installed is hidden
    module = sys.modules[dotted] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
