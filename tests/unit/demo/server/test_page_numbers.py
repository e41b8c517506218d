"""The page's numbers are the protocol's: the generated module is up to date."""

from __future__ import annotations

from demo.server import page_numbers
from demo.server import protocol as wire


def test_the_page_has_the_numbers_of_the_protocol():
    command = "run `python -m demo.server.page_numbers`"
    assert page_numbers.FILE.read_text(encoding="utf-8") == page_numbers.module(), command


def test_a_changed_number_changes_the_module(monkeypatch):
    monkeypatch.setattr(wire, "VERSION", wire.VERSION + 1)
    assert page_numbers.FILE.read_text(encoding="utf-8") != page_numbers.module()
    assert page_numbers.kind_names()["refresh_sink"] == wire.RefreshSink.kind


def test_no_other_module_of_the_page_states_one():
    for file in page_numbers.FILE.parent.glob("*.js"):
        if file != page_numbers.FILE:
            text = file.read_text(encoding="utf-8")
            assert not any(f"{number}" in text for number in (wire.IDLE, wire.MAX_SEED)), file.name
