"""What all nodes must share: found out before anything starts, and said by node."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from pathspec import PathSpec

from infra.files import CHECKOUT
from infra.shared import TOKEN, answer, require_shared, runtime_env


class GetTimeoutError(Exception):
    """A node that does not answer."""


class FakeRay:
    """Nodes by name: what each answers, given (folder, token, node id). None: nothing. Ray's ids are 28 bytes, as hex."""

    exceptions = SimpleNamespace(GetTimeoutError=GetTimeoutError, RayError=RuntimeError)

    def __init__(self, **nodes):
        self.names = {name.encode().hex().ljust(56, "0"): name for name in nodes}
        self.answers = {node_id: nodes[name] for node_id, name in self.names.items()}

    def nodes(self):
        alive = {"Alive": True, "NodeManagerAddress": "::1"}
        known = [{"NodeID": node_id, "NodeManagerHostname": name, **alive} for node_id, name in self.names.items()]
        return [*known, {"NodeID": "dead", "Alive": False}]

    def remote(self, **options):
        return lambda function: self

    def options(self, scheduling_strategy):
        return SimpleNamespace(remote=lambda *given: (scheduling_strategy.node_id, given))

    def wait(self, tasks, num_returns, timeout):
        assert num_returns == len(tasks)

    def get(self, task, timeout):
        node, given = task
        if self.answers[node] is None:
            raise GetTimeoutError
        return self.answers[node](*given)


def refused(*_) -> str:
    raise RuntimeError("worker\nno module named torch")


def test_nodes_that_see_the_folder_pass_and_nothing_stays(tmp_path):
    require_shared(FakeRay(a=answer, b=answer), tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


def test_every_node_that_does_not_is_named_with_what_is_wrong(tmp_path):
    ray = FakeRay(
        good=answer,
        elsewhere=lambda folder, *rest: answer(folder.replace("runs", "other"), *rest),
        silent=None,
        broken=refused,
        late=lambda *_: "",  # says that it wrote, and nothing is to be seen
    )
    with pytest.raises(ValueError) as raised:
        require_shared(ray, tmp_path / "runs", seconds=7)
    logged = str(raised.value)
    assert f"RUNS={tmp_path / 'runs'} must be one folder that all 5 nodes" in logged
    assert "elsewhere (::1): does not see it" in logged
    assert "silent (::1): gave no answer within 7 s" in logged
    assert "broken (::1): cannot run a task: no module named torch" in logged
    assert "late (::1): what it writes is not seen here at once (NFS: mount it with lookupcache=positive)" in logged
    assert "good" not in logged and "dead" not in logged
    assert list((tmp_path / "runs").iterdir()) == []


def test_another_folder_of_the_same_name_is_reported(tmp_path):
    (tmp_path / TOKEN).write_text("theirs")
    assert "another folder" in answer(str(tmp_path), "ours", "n")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_a_node_may_not_write_is_reported(tmp_path):
    (tmp_path / TOKEN).write_text("ours")
    tmp_path.chmod(0o555)
    assert "cannot read and write" in answer(str(tmp_path), "ours", "n")


def test_only_packages_are_shipped_whatever_lies_in_the_checkout():
    shipped = PathSpec.from_lines("gitwildmatch", runtime_env({})["excludes"])
    for path in ("runs-mine/nano/pack/a.tar", "docs/img/overview.png", "README.md", ".venv/bin/python", "my [runs]/x"):
        assert shipped.match_file(path), path
    for path in (
        "infra",
        "infra/distributed.py",
        "msmodel/assets/nano/dit/model.safetensors",
        "configs/preset/nano.yaml",
    ):
        assert not shipped.match_file(path), path
    assert shipped.match_file("infra/__pycache__/distributed.cpython-311.pyc")


def test_what_is_shipped_is_small_enough_for_ray():
    """Ray refuses a working_dir of more than 512 MiB."""
    env = runtime_env({})
    left_out = PathSpec.from_lines("gitwildmatch", env["excludes"])
    files = [p for name in os.listdir(CHECKOUT) if not left_out.match_file(name) for p in (CHECKOUT / name).rglob("*")]
    size = sum(p.stat().st_size for p in files if not left_out.match_file(str(p.relative_to(CHECKOUT))))
    assert 1e6 < size < 100e6


def test_workers_get_where_things_are_and_not_what_is_a_nodes_own():
    given = {
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
        "AWS_ENDPOINT_URL": "http://s3",
        "HF_HOME": "/shared/hf",
        "NCCL_SOCKET_IFNAME": "eth0",
        "FSSPEC_S3_ENDPOINT_URL": "http://s3",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
        "PYTORCH_ALLOC_CONF": "expandable_segments:True",
        "CUDA_LAUNCH_BLOCKING": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "CUDA_VISIBLE_DEVICES": "0",
        "PYTHONPATH": "/mine",
        "HOME": "/root",
    }
    passed = runtime_env(given)["env_vars"]
    assert set(given) - set(passed) == {"CUDA_VISIBLE_DEVICES", "PYTHONPATH", "HOME"}
    assert Path(runtime_env(given)["working_dir"]) == CHECKOUT
