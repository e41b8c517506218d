"""Driver, workers and actors killed at ten random moments, `make data` leaves the bytes of a run that nobody disturbed.

`make kill-test` kills a hundred times.
"""

import pyarrow.parquet as pq
import pytest

from tests.smoke import kills


@pytest.mark.slow
@pytest.mark.timeout(0)  # kills.HANG_SECONDS ends it where nothing moves
def test_ten_kills_change_no_byte(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    src = kills.make_videos(folder / "src")
    items = kills.undisturbed(src, folder / "alone")
    expected = kills.results(folder / "alone")
    catalogue = next((folder / "alone").rglob("catalogue.parquet"))
    statuses = pq.read_table(catalogue, columns=["status"]).column("status").to_pylist()
    assert statuses.count("kept") >= 60
    killed = kills.under_fire(src, folder / "fire", 10, items, seed=0)
    assert killed.total() == 10 and set(killed) == set(kills.KINDS)
    assert kills.results(folder / "fire") == expected
