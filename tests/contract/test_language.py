"""The project's language: the field's words in names, docstrings, comments, messages and pages; docstrings that are sentences.

Each check compares the number of findings with REMAINING, which may only shrink.
`python -m tests.contract.test_language` prints the findings by word and folder and the numbers for REMAINING; with words after
it, the lines where these stand.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from infra.files import CHECKOUT

# Word -> what is searched in every line of text, and what to write. Names are split into their words before.
TEXT = {
    "anew": (r"anew", "again"),
    "beside": (r"beside", "alongside, next to, concurrently"),
    "film": (r"film(s|ed|ing)?", "video"),
    "for ever": (r"for ever", "endless, indefinitely"),
    "gang": (r"gangs?", "distributed job"),
    "lane": (r"lanes?", "shard assignment, sample index"),
    "learner": (r"learners?", "trainable module"),
    "mend": (r"mend(s|ed|ing)?", "fix"),
    "plate": (r"plates?", "still"),
    "said": (r"said", "logged, reported"),
    "shaky": (r"shaky", "jitter"),
    "stand by": (r"(stand|stands|standing|stood) by", "idle"),
    "strip": (r"(film|video|contact) ?strips?|strips", "contact sheet"),
    "told": (r"told", "logged, reported, passed"),
}
# Word -> what is searched in the names that Python code defines, split into words, and what to write. In text these words have
# other meanings.
NAMES = {
    "astray": (r"astray", "what it computes"),
    "crowded": (r"crowded", "what it computes"),
    "deal": (r"deals?", "shard assignment"),
    "draws": (r"draws", "rng"),
    "drawn": (r"^(drawn|guided|probed|rolled|taught)$", "a noun"),  # as the whole name
    "glide": (r"glides?", "what it computes"),
    "hand": (r"hands?", "input smoothing"),
    "look": (r"looks?", "validate"),
    "loyalty": (r"loyalty", "what it computes"),
    "masters": (r"masters", "master weights"),
    "observe": (r"observe[ds]?|observations?", "validate"),
    "phi": (r"phi", "track_id_embedding"),
    "picks": (r"picks", "sample index"),
    "piece": (r"pieces?", "shard"),
    "say": (r"say|says", "log"),
    "shelf": (r"shelf", "upload store"),
    "turns": (r"turns", "update schedule"),
    "wide": (r"wide", "upcast"),
}
# Findings that are right as they are: (file, line).
ALLOWED = (
    (r"tests/contract/test_language\.py", r""),
    (r"CHANGELOG\.md", r""),  # names what was renamed
    (r"configs/settings\.py", r'^ +"[\w.]+": "[\w.]+",'),  # old names of settings
    (r"docs/LOG\.md", r""),  # entries are records and are not edited later
)
# What is left, per check. It may shrink and not grow; a check that is not listed must find nothing.
REMAINING: dict[str, int] = {
    "anew": 2,
    "beside": 22,
    "film": 80,
    "for ever": 5,
    "gang": 2,
    "learner": 8,
    "mend": 1,
    "plate": 2,
    "said": 9,
    "stand by": 1,
    "strip": 1,
    "told": 14,
    "draws": 3,
    "drawn": 35,
    "glide": 1,
    "hand": 20,
    "look": 11,
    "observe": 2,
    "piece": 28,
    "say": 36,
    "shelf": 1,
    "turns": 8,
    "wide": 12,
    "docstring: capital letter": 2,
}
SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".js", ".css", ".html", ".j2", ".sh", ".ipynb", ".cff", ".txt", ""}
PACKAGES = ("configs", "demo", "infra", "msmodel", "pipelines", "stages")


@dataclass(frozen=True)
class Finding:
    """check: its key in REMAINING. file: relative to the checkout."""

    check: str
    file: str
    line: int
    text: str

    @property
    def folder(self) -> str:
        parts = Path(self.file).parts
        return "/".join(parts[: min(2, len(parts) - 1)]) or "."


def words_of(text: str) -> str:
    """Text in which names are split into words: one_two, oneTwo and OneTwo are `one two`. Lower case."""
    text = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", text)
    return re.sub(r"[_\W]+", " ", text).lower()


def matching(vocabulary: Mapping[str, tuple[str, str]], words: str) -> list[str]:
    """The keys of TEXT or NAMES that are found. One search of all finds nothing in most lines."""
    if not _any(tuple(pattern for pattern, _ in vocabulary.values())).search(words):
        return []
    return [word for word, (pattern, _) in vocabulary.items() if _any((pattern,)).search(words)]


@cache
def _any(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"\b({'|'.join(patterns)})\b")


def _allowed(file: str, line: str) -> bool:
    return any(re.fullmatch(f, file) and re.search(pattern, line) for f, pattern in ALLOWED)


def in_text(file: str, text: str) -> Iterator[Finding]:
    """Banned words in a file's lines and in its name."""
    for number, line in enumerate([file, *text.splitlines()]):
        if _allowed(file, line):
            continue
        for word in matching(TEXT, words_of(line)):
            yield Finding(word, file, number, line.strip())


def defined(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that Python code defines: functions, classes, arguments, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


def in_names(file: str, text: str) -> Iterator[Finding]:
    """Banned words in names, that of the module included."""
    for name, line in [(Path(file).stem, 0), *defined(ast.parse(text))]:
        if not _allowed(file, name):
            yield from (Finding(word, file, line, name) for word in matching(NAMES, words_of(name)))


def in_docstrings(file: str, text: str) -> Iterator[Finding]:
    """Docstrings of public functions and classes that do not begin with a capital letter or do not end with a full stop."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        doc = ast.get_docstring(node)
        if doc and doc[0].islower():
            yield Finding("docstring: capital letter", file, node.lineno, doc.partition("\n")[0])
        if doc and not doc.endswith((".", "?", "```")):
            yield Finding("docstring: full stop", file, node.lineno, doc.splitlines()[-1])


def tracked() -> dict[str, str]:
    """Text files of the checkout, those not yet added included."""
    command = ["git", "-C", str(CHECKOUT), "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    skipped = {"LICENSE", "NOTICE", "infra/env/constraints.txt"}
    files = [n for n in names if Path(n).suffix in SUFFIXES and n not in skipped and (CHECKOUT / n).is_file()]
    return {name: (CHECKOUT / name).read_text() for name in files}


def findings() -> list[Finding]:
    out: list[Finding] = []
    for file, text in tracked().items():
        out += in_text(file, text)
        if file.endswith(".py"):
            out += in_names(file, text)
            if file.partition("/")[0] in PACKAGES:
                out += in_docstrings(file, text)
    return out


CHECKS = (*TEXT, *NAMES, "docstring: capital letter", "docstring: full stop")


@pytest.fixture(scope="module")
def found() -> list[Finding]:
    return findings()


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_the_words_are_the_fields_and_docstrings_are_sentences(found, check):
    mine = [f for f in found if f.check == check]
    instead = {**TEXT, **NAMES}.get(check, ("", "a sentence that stands without the function's name"))[1]
    lines = "".join(f"\n  {f.file}:{f.line}: {f.text}" for f in mine)
    assert len(mine) <= REMAINING.get(check, 0), f"{check}: write {instead} instead of what these have:{lines}"


@pytest.mark.parametrize(
    ("line", "check"),
    [
        ("how to mend it", "mend"),
        ("film_strip = 1", "film"),
        ("class FilmStrip:", "strip"),
        ("it goes on for ever", "for ever"),
        ("writes it anew.", "anew"),
        ("def told(self):", "told"),
    ],
)
def test_a_banned_word_is_found_in_text_and_in_names(line, check):
    assert check in {f.check for f in in_text("stages/a.py", line)}


@pytest.mark.parametrize(
    "line",
    [
        "we recommend it",
        "amended",
        "a template",
        "microfilm",
        "text.strip()",
        "besides",
        "gangway",
        "forever",
        "untold",
    ],
)
def test_words_that_only_contain_one_are_right(line):
    assert list(in_text("stages/a.py", line)) == []


def test_names_are_split_and_text_is_not_searched_for_words_that_have_other_meanings():
    text = (
        '"""It turns and says: observe the pieces."""\ndef say_it(turns, b):\n    self.observed = (wide_piece := 1)\n'
    )
    assert {(f.check, f.line) for f in in_names("stages/a.py", text)} == {
        ("say", 2),
        ("turns", 2),
        ("observe", 3),
        ("piece", 3),
        ("wide", 3),
    }
    assert [f.check for f in in_names("demo/hand.py", "")] == ["hand"]


def test_docstrings_that_continue_their_functions_name_are_found():
    text = '''
class A:
    """Closes it."""
    def b(self):
        """from outside."""
    def c(self):
        """From outside"""
    def _d(self):
        """private"""
    def e(self): ...
'''
    found = [(f.check.partition(": ")[2], f.line) for f in in_docstrings("stages/a.py", text)]
    assert found == [("capital letter", 4), ("full stop", 6)]


def test_nothing_remains_that_no_check_has():
    assert set(REMAINING) - set(CHECKS) == set()
    assert all(count > 0 for count in REMAINING.values())


def table(found: list[Finding]) -> str:
    """Findings by check and folder, and the dictionary for REMAINING."""
    lines = []
    for check in CHECKS:
        folders = Counter(f.folder for f in found if f.check == check)
        if folders:
            places = ", ".join(f"{folder} {count}" for folder, count in folders.most_common())
            lines.append(f"{check:26}{sum(folders.values()):5}  {places}")
    counts = Counter(f.check for f in found)
    lines += ["", "REMAINING: dict[str, int] = {", *(f'    "{c}": {counts[c]},' for c in CHECKS if counts[c]), "}"]
    return "\n".join(lines)


if __name__ == "__main__":
    everything = findings()
    if wanted := sys.argv[1:]:
        print(*(f"{f.file}:{f.line}: {f.check}: {f.text}" for f in everything if f.check in wanted), sep="\n")
    else:
        print(table(everything))
