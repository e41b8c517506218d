"""Which of a cluster's resources a command uses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from infra.config import ComputeConfig
from infra.ray_session import RaySession


@pytest.mark.parametrize(("asked", "there", "used"), [(0, 8.0, 8.0), (2, 8.0, 2.0), (16, 8.0, 8.0), (1, 0.0, 0.0)])
def test_a_command_uses_at_most_the_gpus_that_were_asked_for(asked, there, used, tmp_path):
    session = RaySession(ComputeConfig(gpus=asked), pytest.fail, tmp_path)
    session.start = lambda: SimpleNamespace(cluster_resources=lambda: {"CPU": 4.0, "GPU": there})
    assert session.resources() == (4.0, used)
