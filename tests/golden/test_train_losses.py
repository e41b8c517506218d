"""Training losses stay what they were at the commit named in train_losses.json."""

from __future__ import annotations

import json

import pytest

from tests.golden.train_losses import FILE, GOLDEN, measured


@pytest.fixture(scope="module")
def now() -> dict[str, dict[str, list[float]]]:
    return measured()


@pytest.mark.slow
@pytest.mark.parametrize("method", GOLDEN)
def test_losses_are_unchanged(method, now):
    golden = json.loads(FILE.read_text())["values"][method]
    assert now[method].keys() == golden.keys()
    for series, values in golden.items():
        assert now[method][series] == pytest.approx(values, rel=2e-3), f"{method} {series}"
