#!/usr/bin/env bash
# The whole run as one Slurm job: Ray on every node of it, the command on the first. From the top of the checkout, which
# must lie, as RUNS, on a file system that all nodes share:
#   sbatch --nodes=8 infra/cluster/slurm.sh data teacher distill eval PRESET=wan22-5b RUNS=/shared/runs ARGS=compute.workers=64
# Words are make's. A job that ends early (time limit, lost node) goes back into the queue and goes on where it stopped.
#SBATCH --job-name=motionstream
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=motionstream-%j.log
#SBATCH --signal=B:USR1@300
set -euo pipefail
set -m # a process group for each job below: else they would ignore INT
cd "${SLURM_SUBMIT_DIR:?start this with sbatch, from the top of the checkout}"
[ $# -gt 0 ] || set -- data teacher distill eval
NODE_SECONDS=${NODE_SECONDS:-600} # until all nodes must have come

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
count=${#nodes[@]}
for address in $(hostname --ip-address) $(hostname --all-ip-addresses); do
  case $address in 127.* | *:*) ;; *) break ;; esac # Debian's /etc/hosts gives a machine's own name 127.0.1.1
done
cpus=${SLURM_CPUS_PER_TASK:-$(nproc)}
port=$((20000 + SLURM_JOB_ID % 20000))
token=$(od -An -N16 -tx1 /dev/urandom)
export RAY_ADDRESS="$address:$port" RAY_AUTH_MODE=token RAY_AUTH_TOKEN=${token//[[:space:]]/} RAY_USAGE_STATS_ENABLED=0
export PATH="$PWD/.venv/bin:$PATH"

steps=()
work='' stopped=''
start_ray() { # srun's options, --, ray start's
  local options=()
  while [ "$1" != -- ]; do
    options+=("$1")
    shift
  done
  shift
  # Said, since srun does not read it from the environment from 22.05 on.
  srun --overlap --ntasks-per-node=1 --cpus-per-task="$cpus" "${options[@]}" \
    ray start --num-cpus="$cpus" --temp-dir="/tmp/ray-$SLURM_JOB_ID" --block "$@" &
  steps+=($!)
}
stop_ray() {
  [ ${#steps[@]} -eq 0 ] || kill -TERM "${steps[@]}" 2>/dev/null || true
  wait || true
}
interrupt() { # what to do after it: requeue or nothing; the first to ask decides
  stopped=${stopped:-$1}
  [ -z "$work" ] || kill -INT -- "-$work" 2>/dev/null || true
}
trap stop_ray EXIT
trap 'interrupt requeue' USR1
trap 'interrupt nothing' TERM # scancel; or a lost node, after which Slurm itself brings the job back

echo "Ray on $count nodes: ${nodes[*]}"
start_ray --nodes=1 --ntasks=1 --nodelist="${nodes[0]}" -- \
  --head --node-ip-address="$address" --port="$port" --include-dashboard=false
[ "$count" -eq 1 ] ||
  start_ray --nodes=$((count - 1)) --ntasks=$((count - 1)) --exclude="${nodes[0]}" -- --address="$RAY_ADDRESS"

python - "$count" "$NODE_SECONDS" <<'PY' &
"""Waits until all nodes have joined."""
import sys
import time

import ray

count, deadline = int(sys.argv[1]), time.monotonic() + float(sys.argv[2])
alive = 0
while alive < count:
    if time.monotonic() > deadline:
        sys.exit(f"{alive} of {count} nodes have joined Ray: see the lines of `ray start` above")
    try:
        if not ray.is_initialized():
            ray.init(log_to_driver=False, logging_level="ERROR")
        alive = sum(node["Alive"] for node in ray.nodes())
    except ConnectionError:
        alive = 0
    time.sleep(1)
PY
work=$!
[ -z "$stopped" ] || interrupt "$stopped" # the signal came before there was anything to interrupt
status=0
wait "$work" || status=$?

if [ "$status" -eq 0 ] && [ -z "$stopped" ]; then
  make "$@" &
  work=$!
  [ -z "$stopped" ] || interrupt "$stopped"
  wait "$work" || status=$?
  [ -z "$stopped" ] || { wait "$work" && status=0 || status=$?; } # the signal had ended the first wait
fi
if [ "$stopped" = requeue ] && [ "$status" -ne 0 ]; then
  trap - EXIT
  stop_ray
  echo "time is up: back into the queue"
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
