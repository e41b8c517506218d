"""Writes docs/settings.md, the reference of all settings: `python -m configs.document`.

The page is generated from the code. A setting's meaning is the comment after its field or, where that would be too
long, the entry `name: meaning.` in the docstring of its class. A class that inherits a setting inherits its meaning.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from configs.settings import Config, preset_leaves, preset_names

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "settings.md"
PACKAGES = ("msmodel", "stages", "infra", "configs", "demo", "pipelines")
CHECKS = ("checks", "problems")  # methods that validate settings: they do not count as readers
MOST_READERS = 8
INTRODUCTION = """\
# Settings

Every setting of `ARGS="KEY=VALUE ..."` and of the files in `configs/preset`. The page is generated from the code:
do not edit it, run `python -m configs.document`. `motionstream config --preset NAME` prints a preset. A wrong key or value
stops a command before anything starts, with all mistakes at once. Lists are written `[1,2]`. The column *presets* names those
presets that set another value than the default. *Read in* names up to eight modules that were found to read the setting,
checks of its value left out. They are found by name, so there may be others.
"""


@dataclass(frozen=True)
class Setting:
    """One setting, that is one row of the page. group: dotted name of its group, "" at the top. owner: the class that
    declares it."""

    group: str
    name: str
    hint: Any
    default: Any
    owner: type

    @property
    def key(self) -> str:
        """Returns the dotted name of the setting, as in overrides."""
        return f"{self.group}.{self.name}" if self.group else self.name


def settings(kind: type = Config, group: str = "") -> Iterator[Setting]:
    """Yields every setting, those of a group before those of the groups inside it."""
    hints, default, inner = get_type_hints(kind), kind(), []
    for f in fields(kind):
        if is_dataclass(hints[f.name]):
            inner.append((hints[f.name], f"{group}.{f.name}" if group else f.name))
        else:
            yield Setting(group, f.name, hints[f.name], vars(default)[f.name], kind)
    for kind_inside, name in inner:
        yield from settings(kind_inside, name)


def meaning(setting: Setting) -> str:
    """Returns the meaning of a setting, from its class or the nearest base class that states it; "" where none does."""
    for kind in setting.owner.__mro__:
        if is_dataclass(kind) and (text := _meanings(kind).get(setting.name)):
            return text
    return ""


@cache
def _meanings(kind: type) -> Mapping[str, str]:
    source = inspect.getsource(kind)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    declared = [n for n in tree.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    found = _entries(kind.__doc__ or "", [ast.unparse(node.target) for node in declared])
    for node in declared:
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        if text := next((comments[n] for n in lines if n in comments), ""):
            found[ast.unparse(node.target)] = text
    return found


def _entries(text: str, names: list[str]) -> dict[str, str]:
    """Returns {name: meaning} from the entries `name: meaning.` and `name, name: meaning.` of a docstring."""
    if not names:
        return {}
    either, text = "|".join(names), " ".join(text.split())
    starts = list(re.finditer(rf"(?:^|(?<=[.;] ))((?:{either})(?:, (?:{either}))*): ", text))
    found: dict[str, str] = {}
    for number, match in enumerate(starts):
        end = starts[number + 1].start() if number + 1 < len(starts) else len(text)
        found |= dict.fromkeys(match.group(1).split(", "), text[match.end() : end].strip().rstrip(".;"))
    return found


def about(kind: type) -> str:
    """Returns the part of a group's docstring before its entries."""
    text = " ".join((kind.__doc__ or "").split())
    names = "|".join(f.name for f in fields(kind))
    return re.split(rf"(?:^|(?<=[.;] ))(?:{names})(?:, (?:{names}))*: ", text)[0].strip()


@dataclass(frozen=True)
class Module:
    """The names that one module uses. reads: (base, attribute) of every attribute that it reads; base is the last name
    before the dot, and for `self` the name of the class. A local name that stands for an attribute has that one as
    well: `own.window` after `own = model.student` is ("own", "window") and ("student", "window")."""

    path: str
    names: frozenset[str]
    reads: frozenset[tuple[str, str]]


@cache
def modules() -> tuple[Module, ...]:
    """Returns all modules of the project's packages."""
    return tuple(_module(path) for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))


def _module(path: Path) -> Module:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    return Module(str(path.relative_to(ROOT)), frozenset(names), frozenset(_reads(tree, {})))


def _reads(node: ast.AST, stands_for: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yields (base, attribute) of every attribute that is read below a node, except in the checks of settings."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in CHECKS:
        return
    if isinstance(node, ast.ClassDef):
        stands_for = {**stands_for, "self": node.name}
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        stands_for = {**stands_for, **dict(_local_names(node))}
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        base = node.value
        last = base.attr if isinstance(base, ast.Attribute) else base.id if isinstance(base, ast.Name) else ""
        if last != "self":
            yield last, node.attr
        if isinstance(base, ast.Name) and base.id in stands_for:
            yield stands_for[base.id], node.attr
    for child in ast.iter_child_nodes(node):
        yield from _reads(child, stands_for)


def _local_names(function: ast.AST) -> Iterator[tuple[str, str]]:
    """Yields (name, attribute) of each `name = a.attribute` in a function, also in an assignment of several names."""
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            pairs = [(target, node.value)]
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                pairs = list(zip(target.elts, node.value.elts, strict=False))
            for name, value in pairs:
                if isinstance(name, ast.Name) and isinstance(value, ast.Attribute):
                    yield name.id, value.attr


def readers(setting: Setting) -> list[str]:
    """Returns the modules that read `group.name`, `self.name` in a class of settings that has it, or an attribute of that
    name if they mention the setting's class.

    A module that declares settings counts by the third rule only if it mentions this class itself, not one of its bases,
    and the module that declares the class only if it declares no other. A setting that is read nowhere is attributed to
    the module that declares it.
    """
    kinds = {k.__name__ for k in setting.owner.__mro__ if is_dataclass(k) and setting.name in get_type_hints(k)}
    exact, home = {*kinds, setting.group.rpartition(".")[2]}, _home(setting.owner)
    found = []
    for module in modules():
        bases = {base for base, attribute in module.reads if attribute == setting.name}
        names = {setting.owner.__name__} if module.path in _homes() else kinds
        if module.path == home and len(_homes()[home]) > 1:
            names = set()
        if bases & exact or (bases and names & module.names):
            found.append(module.path)
    return found or [home]


@cache
def _homes() -> Mapping[str, frozenset[type]]:
    """Returns the modules that declare settings, each with its classes of settings."""
    owners = {setting.owner for setting in settings()}
    return {home: frozenset(k for k in owners if _home(k) == home) for home in map(_home, owners)}


def _home(kind: type) -> str:
    return f"{kind.__module__.replace('.', '/')}.py"


def page() -> str:
    """Returns the text of docs/settings.md."""
    changed: dict[str, list[str]] = {}
    for preset in preset_names():
        for key, value in preset_leaves(preset):
            changed.setdefault(key, []).append(f"{preset}: {_value(value)}")
    parts, last = [INTRODUCTION], None
    for setting in settings():
        if setting.group != last:
            last = setting.group
            home = f"`{setting.owner.__name__}` in `{_home(setting.owner)}`."
            parts.append(f"\n## {setting.group or 'Top level'}\n\n{about(setting.owner)} {home}\n\n{HEAD}")
        found = readers(setting)
        more = f" and {len(found) - MOST_READERS} more" if len(found) > MOST_READERS else ""
        row = (
            f"`{setting.key}`",
            _type(setting.hint),
            f"`{_value(setting.default)}`",
            "<br>".join(changed.get(setting.key, [])),
            meaning(setting),
            ", ".join(f"`{path}`" for path in found[:MOST_READERS]) + more,
        )
        parts.append("\n| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
    return "".join(parts) + "\n"


HEAD = "| key | type | default | presets | meaning | read in |\n|---|---|---|---|---|---|"


def _type(hint: Any) -> str:
    if get_origin(hint) is tuple:
        inner = [a.__name__ for a in get_args(hint) if a is not Ellipsis]
        return f"list of {inner[0]}" if Ellipsis in get_args(hint) else f"list of {len(inner)} {inner[0]}"
    return hint.__name__


def _value(value: Any) -> str:
    """Returns a value as it is written in an override."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_value, value))}]"
    return '""' if value == "" else str(value)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
