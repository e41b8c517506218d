"""Two Ray nodes on this machine: what workers are given, work on both, and the loss of a node in the middle of a
distributed job."""

from __future__ import annotations

import json
import threading
import time

import pytest

from infra import ray_session
from infra.files import CHECKOUT
from infra.shared import SHIPPED
from tests.unit.infra import fakes, spread

# Ray asks every node every half a second, six times: one whose process is gone refuses at once and is lost after three seconds
# (by default after 15 and more), while a busy one has ten seconds for each answer.
SOON = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 6,
    "health_check_timeout_ms": 10_000,
}


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, as RAY_ADDRESS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # all on this machine's loopback
        patch.setenv("PYTHONPATH", str(CHECKOUT))  # for the fakes: tests are not shipped
        patch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
        patch.setenv(
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "40"
        )  # how long a distributed job waits for a node that is lost
        ray_session._set_environment()
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "include_dashboard": False, "_system_config": SOON}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        patch.setenv("RAY_ADDRESS", cluster.address)
        cluster.second = cluster.add_node(num_cpus=1)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def world(cluster, tmp_path):
    store, runner = fakes.world(tmp_path / "runs" / "debug", "ray", max_failures=2)
    yield store, runner
    runner.stop()


@pytest.mark.slow
def test_workers_are_given_the_packages_and_the_environment_and_items_go_to_both_nodes(world):
    store, runner = world
    ray = runner.session.start()  # both nodes see RUNS, or it would not
    given = ray.get(ray.remote(spread.seen_by_a_worker).remote())
    assert given["cwd"] == set(SHIPPED)
    assert not str(given["infra"]).startswith(str(CHECKOUT))
    assert given["user"] == "ada"
    assert not [p for p in store.root.parent.iterdir() if p.name.startswith(".nodes-")]
    cfg = fakes.FakeConfig(seconds=0.2)
    records = runner.run(fakes.work(store, spread.ITEMS, cfg, fakes.items(12)), None, {}).records
    assert [r.number for r in records] == list(range(1, 13))
    nodes = {path.read_text().strip() for path in store.root.rglob("done.txt")}
    assert nodes == {node["NodeID"] for node in ray.nodes() if node["Alive"]}


@pytest.mark.slow
def test_a_job_over_two_nodes_survives_the_loss_of_one(cluster, world):
    """From the last save, on the node that is left."""
    store, runner = world
    work = fakes.work(store, spread.DISTRIBUTED, fakes.FakeConfig(seconds=0.05), ())
    done = work.step.folder / "done.txt"

    def lose_a_node() -> None:
        while not done.exists() or str(spread.LOST_AT) not in done.read_text().split():
            time.sleep(0.05)
        cluster.remove_node(cluster.second, allow_graceful=False)

    before = {node.node_id for node in cluster.list_all_nodes()}
    thief = threading.Thread(target=lose_a_node, daemon=True)
    thief.start()
    checkpoint = runner.run(work, None, {}).records
    thief.join()
    assert checkpoint.metrics == {"value": spread.whole_march()}
    steps = [int(x) for x in done.read_text().split()]
    assert steps[: spread.LOST_AT] == list(range(1, spread.LOST_AT + 1))
    assert steps[spread.LOST_AT :] == list(range(spread.LOST_AT, spread.STEPS + 1))  # from the save, not from the start
    ranks = {tuple(p.name.split("-")[1:]) for p in work.step.folder.glob("rank-*")}
    assert {node for _, node in ranks} >= before and {rank for rank, _ in ranks} == {"0", "1"}
    assert json.loads((work.step.folder / "state.json").read_text())[0] == spread.STEPS
