"""README and docs: every command parses, every setting, file and link that they name exists, and the site builds."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from configs.settings import Config, _known, load, preset_names
from docs.img.diagrams import DIAGRAMS
from docs.site.links import plain_links
from infra.files import CHECKOUT
from pipelines.commands import cli

README = CHECKOUT / "README.md"
HISTORY = CHECKOUT / "docs" / "LOG.md"  # names files and settings of its time
PAGES = [
    README,
    *CHECKOUT.glob("CONTRIBUTING.md"),
    *sorted(p for p in (CHECKOUT / "docs").rglob("*.md") if p != HISTORY),
]
MAKE_VARIABLES = {
    *("PRESET", "SRC", "ARGS", "RUNS", "GPUS", "PYTHON", "CLIP", "CHECKPOINT"),
    *("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "TORCH_BUILD", "HF_HOME", "COTRACKER_HUB"),
}
OTHER_PROGRAMS = {"pre-commit", "git", "cd", "export", "mkdir", "docker", "kubectl", "sbatch", "hf"}
PLACEHOLDER = re.compile(r"\b(NAME|KEY|ID|FOLDER|PRESET|RUNS|STEP|CLIP)\b|\.\.\.")
OWN_COMMAND_LINES = {"client": CHECKOUT / "demo" / "client.py", "soak": CHECKOUT / "demo" / "soak.py"}
PACKAGES = "configs|pipelines|demo|stages|msmodel|infra|tests|notebooks|docs"


@dataclass(frozen=True)
class Command:
    """A command of a page. page: the file's name; text: as a shell would get it."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text, comments=True)

    @property
    def id(self) -> str:
        return f"{self.page}: {self.text[:60]}"


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)


def inline(page: Path) -> list[str]:
    """Every code span of the page's text."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page))


def fenced(page: Path, language: str) -> list[str]:
    """The contents of the page's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.M | re.S)


def commands() -> Iterator[Command]:
    for page in PAGES:
        name = str(page.relative_to(CHECKOUT))
        for block in fenced(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                yield from (Command(name, part) for part in line.split(" && ") if part.strip())
        for span in inline(page):
            if re.match(r"(make|motionstream|python -m|\.venv/bin/\S+) [^.A-Z]", span):
                yield Command(name, span)


COMMANDS = [c for c in commands() if c.words]


def of(program: str) -> list[Command]:
    """Commands of one program, leaving out assignments of the environment before it and the folder of the environment."""
    return [c for c in COMMANDS if Path(_bare(c)[0]).name == program]


def _bare(command: Command) -> list[str]:
    words = command.words
    while "=" in words[0] and not words[0].startswith("-"):
        words = words[1:]
        if not words:
            return [""]
    return words


@cache
def settings() -> dict[str, bool]:
    """Every dotted key, and whether it is a group."""
    return dict(_known(Config, ""))


def unknown_settings(words: list[str]) -> list[str]:
    keys = [w.partition("=")[0] for w in words if "=" in w and not w.startswith("-")]
    return [k for k in keys if k not in settings() and not PLACEHOLDER.search(k)]


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 80
    assert len(of("make")) > 50 and len(of("python")) > 5


def test_every_command_is_of_a_program_that_is_checked():
    known = {"make", "python", "motionstream", *OTHER_PROGRAMS, ""}
    assert [c.id for c in COMMANDS if Path(_bare(c)[0]).name not in known] == []


def test_every_make_target_exists():
    targets = {w for c in of("make") for w in _bare(c)[1:] if "=" not in w and w != "..."}
    rules = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), flags=re.M))
    assert sorted(targets - rules) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in of("make") if "=" in c.text], ids=lambda c: c.id)
def test_variables_of_make_have_sound_values(command):
    given = dict(w.split("=", 1) for w in command.words if "=" in w)
    assert sorted(set(given) - MAKE_VARIABLES) == []
    preset = given.get("PRESET", "nano")
    preset = "nano" if PLACEHOLDER.search(preset) else preset
    assert preset in preset_names()
    words = shlex.split(given.get("ARGS", ""))
    assert unknown_settings(words) == []
    options = [w for w in words if w.startswith("--")]
    if not options and not any(PLACEHOLDER.search(w) for w in words):
        load(preset, words, gpus=given.get("GPUS", ""))


def _targets(command: Command) -> list[str]:
    return [w for w in _bare(command)[1:] if "=" not in w]


@pytest.mark.parametrize("command", [c for c in of("make") if "ARGS=" in c.text and "--" in c.text], ids=lambda c: c.id)
def test_options_in_args_parse(command):
    args = dict(w.split("=", 1) for w in command.words if "=" in w)["ARGS"]
    parse(_targets(command)[0], shlex.split(args))


def parse(name: str, words: list[str]) -> None:
    """Parses a command of motionstream. Fails for an unknown command, option or setting."""
    if name == "--help":
        return
    command = cli.BY_NAME[name]
    module = importlib.import_module(f"pipelines.commands.{command.module}")
    if hasattr(module, "main"):  # a command line of its own
        known = set(re.findall(r'"(--[a-z-]+)"', OWN_COMMAND_LINES[name].read_text()))
        assert [w for w in words if w.startswith("--") and w not in known] == []
    else:
        cli.parse(command, words)
        assert unknown_settings(words) == []


@pytest.mark.parametrize("command", of("motionstream"), ids=lambda c: c.id)
def test_commands_of_motionstream_parse(command):
    parse(*_first_and_rest(_bare(command)[1:]))


def _first_and_rest(words: list[str]) -> tuple[str, list[str]]:
    return words[0], words[1:]


@pytest.mark.parametrize("command", of("python"), ids=lambda c: c.id)
def test_modules_exist_and_know_the_options(command):
    words = _bare(command)
    assert words[1] == "-m"
    spec = importlib.util.find_spec(words[2])
    assert spec is not None and spec.origin is not None
    if words[2] == "pytest":
        missing = [w for w in words[3:] if not w.startswith("-") and not (CHECKOUT / w.partition("::")[0]).exists()]
        assert missing == []
    elif words[2] == "pipelines" and len(words) > 3 and words[3] != "COMMAND":
        parse(*_first_and_rest(words[3:]))
    elif len(words) > 3 and words[2] != "pipelines":
        source = Path(spec.origin).read_text()
        assert [w for w in words[3:] if w.startswith("--") and f'"{w}"' not in source] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_settings_that_a_page_names_exist(page):
    groups = {k.partition(".")[0] for k in settings()}
    spans = [s for s in inline(page) if re.fullmatch(r"[a-z]\w*(\.[a-z]\w*)+(=\S*)?", s)]
    named = [s for s in spans if s.partition(".")[0] in groups and not s.endswith((".py", ".yaml", ".md", ".mp4"))]
    assert [s for s in named if s.partition("=")[0] not in settings()] == []
    for span in (s for s in inline(page) if s.startswith("ARGS=")):
        assert unknown_settings(shlex.split(span.removeprefix("ARGS=").strip('"'))) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_files_that_a_page_names_exist(page):
    spans = [s for s in inline(page) if re.fullmatch(rf"({PACKAGES})/[\w./*-]+", s) and not PLACEHOLDER.search(s)]
    assert [s for s in spans if not any(CHECKOUT.glob(s.rstrip("/")))] == []


def anchors(page: Path) -> set[str]:
    """The anchors of the page's headings, as GitHub and mkdocs make them."""
    heads = re.findall(r"^#+ (.+)$", prose(page), flags=re.M)
    texts = [re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head).lower()) for head in heads]
    return {text.strip().replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", [*PAGES, HISTORY], ids=lambda p: p.name)
def test_links_and_pictures_of_a_page_exist(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+://|mailto:", link):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(link)
    assert broken == []


def test_readme_is_a_door():
    assert len(README.read_text().splitlines()) <= 150
    assert "git clone <" not in README.read_text()


def test_the_questions_of_a_stranger_have_an_answer_one_click_from_the_readme():
    answers = anchors(CHECKOUT / "docs" / "faq.md")
    assert len(answers) == 11  # the title and ten questions
    assert "(docs/faq.md)" in README.read_text()


@pytest.mark.parametrize("name", DIAGRAMS)
def test_diagrams_are_those_of_their_script(name):
    assert (CHECKOUT / "docs" / "img" / name).read_text() == DIAGRAMS[name](), "run: python docs/img/diagrams.py"


def test_links_out_of_the_site_become_text_and_broken_ones_stay():
    folder = CHECKOUT / "docs"
    assert plain_links("see [the loop](../stages/train/loop.py#L1).", folder) == "see the loop."
    for kept in ("[a](../stages/none.py)", "[a](GPU.md)", "![a](../README.md)"):
        assert plain_links(kept, folder) == kept


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "index.html").read_text()
    assert re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?:', page) == []
    assert (tmp_path / "site" / "architecture.html").is_file()
