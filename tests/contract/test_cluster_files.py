"""What infra/cluster and infra/docker say, against the published schemas of what reads it, and against this project.

No Kubernetes or Docker is here: these files were never run by one. A real Slurm: tests/smoke/test_slurm.py, where installed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
import yaml

from infra.files import CHECKOUT

CLUSTER, DOCKER = CHECKOUT / "infra" / "cluster", CHECKOUT / "infra" / "docker"
SCHEMAS = Path(__file__).parent / "schemas"
HANG_SECONDS = 500  # below pytest's own limit, so that the assertion names what hangs


def read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def problems(value: Any, schema: str) -> list[str]:
    """Both KubeRay's and compose's schemas hold under draft 7."""
    found = jsonschema.Draft7Validator(json.loads((SCHEMAS / f"{schema}.json").read_text())).iter_errors(value)
    return [f"{error.json_path}: {error.message}" for error in found]


@pytest.mark.parametrize("kind", ["rayjob", "raycluster"])
def test_manifests_follow_kuberays_schema(kind):
    assert problems(read(CLUSTER / f"{kind}.yaml"), kind) == []


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("shutdownAfterJobFinishes: true", "shutdownAfterJobFinish: true", "'shutdownAfterJobFinish' was unexpected"),
        ("mountPath: /dev/shm", "path: /dev/shm", "'mountPath' is a required property"),
        ("backoffLimit: 3", "backoffLimit: three", "'three' is not of type 'integer'"),
        ("medium: Memory", "medum: Memory", "'medum' was unexpected"),
    ],
)
def test_a_misspelt_manifest_is_found(old, new, found):
    text = (CLUSTER / "rayjob.yaml").read_text()
    assert old in text
    assert any(found in p for p in problems(yaml.safe_load(text.replace(old, new)), "rayjob"))


def groups(manifest: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(head, workers) of a RayJob or a RayCluster."""
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    (workers,) = spec["workerGroupSpecs"]
    return spec["headGroupSpec"], workers


@pytest.mark.parametrize("kind", ["rayjob", "raycluster"])
def test_every_pod_has_the_folder_runs_and_the_secret_and_workers_have_shared_memory(kind):
    manifest = read(CLUSTER / f"{kind}.yaml")
    claim, secret = yaml.safe_load_all((CLUSTER / "storage.yaml").read_text())
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in groups(manifest):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounts = {m["name"]: m["mountPath"] for m in container["volumeMounts"]}
        volumes = {v["name"]: v for v in pod["volumes"]}
        assert mounts["runs"] == "/runs" and set(mounts) == set(volumes)
        assert volumes["runs"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert container["envFrom"] == [{"secretRef": {"name": secret["metadata"]["name"]}}]
    head, workers = groups(manifest)
    (worker,) = workers["template"]["spec"]["containers"]
    assert mounts["shm"] == "/dev/shm" and volumes["shm"]["emptyDir"]["medium"] == "Memory"
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert head["rayStartParams"]["num-cpus"] == "0"
    pins = (CHECKOUT / "infra" / "env" / "constraints.txt").read_text()
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    assert f"\nray=={spec['rayVersion']}\n" in pins


def test_the_jobs_command_is_one_that_make_and_the_configuration_know():
    from configs.settings import load

    words = re.findall(r'(?:[^\s"]|"[^"]*")+', read(CLUSTER / "rayjob.yaml")["spec"]["entrypoint"])
    assert words[:3] == ["make", "-C", "/opt/motionstream"]
    values = dict(w.split("=", 1) for w in words[3:] if "=" in w)
    assert [w for w in words[3:] if "=" not in w] == ["data", "teacher", "distill", "eval"]
    cfg = load(values["PRESET"], values["ARGS"].strip('"').split(), values["SRC"], values["RUNS"])
    _, workers = groups(read(CLUSTER / "rayjob.yaml"))
    assert cfg.compute.workers == 8 * workers["replicas"]


def test_compose_follows_its_schema_and_a_misspelt_key_is_found():
    for name in ("compose.yaml", "compose.gpu.yaml"):
        assert problems(read(DOCKER / name), "compose") == []
    wrong = read(DOCKER / "compose.yaml")
    wrong["services"]["mlflow"]["healthchek"] = wrong["services"]["mlflow"].pop("healthcheck")
    assert any("healthchek" in p for p in problems(wrong, "compose"))


def test_composes_services_fit_together():
    compose = read(DOCKER / "compose.yaml")
    services, dockerfile = compose["services"], (DOCKER / "Dockerfile").read_text()
    assert (DOCKER / services["mlflow"]["build"]["context"]).resolve() == CHECKOUT
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services), name
        if "build" in service:
            assert (CHECKOUT / service["build"]["dockerfile"]).is_file()
            assert f" AS {service['build']['target']}\n" in dockerfile
    mlflow = services["mlflow"]
    assert set(compose["volumes"]) == {
        m.split(":")[0] for s in services.values() for m in s.get("volumes", ()) if m[0] != "$"
    }
    assert services["pipeline"]["environment"]["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    assert "mlflow:5000" in mlflow["command"][mlflow["command"].index("--allowed-hosts") + 1].split(",")
    assert set(read(DOCKER / "compose.gpu.yaml")["services"]) <= set(services)


def test_the_image_copies_the_environments_files_before_the_code_and_runs_as_a_user():
    lines = [line for line in (DOCKER / "Dockerfile").read_text().split("AS pipeline")[1].splitlines() if line]
    mine = "COPY --chown=motionstream:motionstream"
    wanted = ("USER 1000", f"{mine} pyproject.toml", "RUN UV_NO_CACHE", f"{mine} . .")
    order = [next(i for i, line in enumerate(lines) if line.startswith(start)) for start in wanted]
    assert order == sorted(order)
    sent = [line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert all((CHECKOUT / name).exists() for name in sent)
    assert {"Makefile", "pyproject.toml", "configs", "infra", "msmodel", "pipelines", "stages"} <= set(sent)


@pytest.mark.slow
def test_setup_hands_pips_settings_to_uv(tmp_path):
    """Of the environment before those of files, as pip does; what uv was told itself stands."""
    (tmp_path / "infra" / "env").mkdir(parents=True)
    (tmp_path / "infra" / "env" / "constraints.txt").write_text("torch==0\n")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    script = shutil.copy(CHECKOUT / "infra" / "env" / "setup.sh", tmp_path / "infra" / "env")
    python = f"exec env PIP_CONFIG_FILE=$PWD/pip.conf {sys.executable} -m pip config list"
    for name, line in {"python": f'[ "$3" = install ] || {python}', "uv": "env > told"}.items():
        (tmp_path / ".venv" / "bin" / name).write_text(f"#!{shutil.which('bash')}\n{line}\n")
        (tmp_path / ".venv" / "bin" / name).chmod(0o755)
    (tmp_path / "pip.conf").write_text(
        "[global]\ncert = /file\nfind-links = /wheels\nindex-url = https://mirror/simple\n"
    )
    kept = {k: v for k, v in os.environ.items() if k != "SSL_CERT_FILE" and not k.startswith(("UV_", "PIP_"))}
    kept |= {"PYTHON": sys.executable, "TORCH_BUILD": "cpu", "UV_FIND_LINKS": "/mine"}
    for more, cert in (({}, "/file"), ({"PIP_CERT": "/environment"}, "/environment")):
        subprocess.run(["bash", script], env=kept | more, check=True, stdout=subprocess.DEVNULL)
        reported = dict(line.split("=", 1) for line in (tmp_path / "told").read_text().splitlines() if "=" in line)
        assert reported["SSL_CERT_FILE"] == cert and reported["UV_FIND_LINKS"] == "/mine"
        assert reported["UV_DEFAULT_INDEX"] == "https://mirror/simple"
    several = kept | {"PIP_FIND_LINKS": "/a /b\n/c"}
    del several["UV_FIND_LINKS"]
    subprocess.run(["bash", script], env=several, check=True, stdout=subprocess.DEVNULL)
    assert "UV_FIND_LINKS=/a,/b,/c\n" in (tmp_path / "told").read_text()


@pytest.mark.parametrize(
    ("linter", "file"),
    [
        ("shellcheck", "infra/cluster/slurm.sh"),
        ("shellcheck", "infra/env/setup.sh"),
        ("shellcheck", ".ci/run"),
        ("hadolint", "infra/docker/Dockerfile"),
    ],
)
def test_linters_have_nothing_to_report(linter, file):
    program = shutil.which(linter, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program, f"{linter} is not installed: make setup"
    done = subprocess.run([program, CHECKOUT / file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


FAKES = {
    "scontrol": """
if [ "$1" = show ]; then printf 'n1\\nn2\\nn3\\n'; else echo "scontrol $*" >> log; fi""",
    "hostname": "echo 10.0.0.1",
    "srun": """
echo "srun $*" >> log
while [ "${1#-}" != "$1" ]; do shift; done
exec "$@" """,
    "ray": """
echo "ray $* to $RAY_ADDRESS with ${RAY_AUTH_MODE} ${#RAY_AUTH_TOKEN}" >> log
trap 'echo "ray stopped" >> log; exit 0' TERM
while :; do sleep 0.05; done""",
    "python": """
cat > waiting.py
while [ "$(grep -c '^ray start' log)" -lt 2 ]; do sleep 0.02; done
echo "python $*" >> log""",
    "make": """
trap 'echo "make interrupted" >> log; exit 130' INT
printf 'make'  >> log; printf ' [%s]' "$@" >> log; echo " on $RAY_ADDRESS" >> log
if [ "${MAKE_WAITS:-}" ]; then while :; do sleep 0.05; done; fi
exit "${MAKE_STATUS:-0}" """,
}


@pytest.fixture
def allocation(tmp_path):
    """Starts the Slurm script as if on three nodes: every program that it calls is a fake that notes what it was told."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, script in FAKES.items():
        path = tmp_path / ".venv" / "bin" / name
        path.write_text(f"#!{shutil.which('bash')}{script if script[0] == chr(10) else chr(10) + script}\n")
        path.chmod(0o755)

    def start(*words: str, **environment: str) -> subprocess.Popen[str]:
        mine = {
            "PATH": f"{tmp_path}/.venv/bin:{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(tmp_path),
            "SLURM_JOB_ID": "123456",
            "SLURM_JOB_NODELIST": "n[1-3]",
            "SLURM_CPUS_PER_TASK": "4",
        }
        # As from sbatch: tests that run in the background ignore INT, and what ignores it from the start cannot heed it.
        command = ["env", "--default-signal=INT", "bash", str(CLUSTER / "slurm.sh"), *words]
        job = subprocess.Popen(
            command, env=mine | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        jobs.append(psutil.Process(job.pid))
        return job

    jobs: list[psutil.Process] = []
    yield tmp_path / "log", start
    for job in jobs:  # of a test that failed
        if job.is_running():
            for process in [*job.children(recursive=True), job]:
                process.kill()


def test_slurm_starts_ray_on_all_nodes_runs_make_and_stops_ray(allocation):
    log, start = allocation
    job = start("data", "PRESET=nano", "ARGS=teacher.phase1_steps=1 dmd.steps=2")
    out, _ = job.communicate(timeout=HANG_SECONDS)
    assert job.returncode == 0, out
    lines = log.read_text().splitlines()
    address = f"10.0.0.1:{20000 + 123456 % 20000}"
    assert any(line.startswith("srun") and "--nodelist=n1" in line and "--head" in line for line in lines)
    assert any(line.startswith("srun") and "--nodes=2" in line and f"--address={address}" in line for line in lines)
    assert sum(line.endswith(f"to {address} with token 32") for line in lines) == 2
    assert "python - 3 600" in lines
    made = lines.index(f"make [data] [PRESET=nano] [ARGS=teacher.phase1_steps=1 dmd.steps=2] on {address}")
    assert lines[made + 1 :] == ["ray stopped", "ray stopped"]
    compile((log.parent / "waiting.py").read_text(), "waiting.py", "exec")


def test_slurm_passes_makes_failure_on_and_does_not_requeue_it(allocation):
    log, start = allocation
    job = start(MAKE_STATUS="2")
    job.communicate(timeout=HANG_SECONDS)
    assert job.returncode == 2
    lines = log.read_text().splitlines()
    assert any(line.startswith("make [data] [teacher] [distill] [eval] on") for line in lines)
    assert lines[-1] == "ray stopped" and not any(line.startswith("scontrol") for line in lines)


@pytest.mark.parametrize(
    ("stop", "after"), [(signal.SIGUSR1, ["scontrol requeue 123456"]), (signal.SIGTERM, [])], ids=["limit", "scancel"]
)
def test_slurm_interrupts_make_and_only_before_the_time_limit_goes_back_into_the_queue(allocation, stop, after):
    log, start = allocation
    assert "\n#SBATCH --signal=B:USR1@" in (CLUSTER / "slurm.sh").read_text()
    job = start(MAKE_WAITS="1")
    deadline = time.monotonic() + HANG_SECONDS
    while not (log.exists() and "make [" in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(stop)
    out, _ = job.communicate(timeout=HANG_SECONDS)
    assert job.returncode == 130, out
    lines = log.read_text().splitlines()
    made = next(i for i, line in enumerate(lines) if line.startswith("make ["))
    assert lines[made + 1 :] == ["make interrupted", "ray stopped", "ray stopped", *after]
