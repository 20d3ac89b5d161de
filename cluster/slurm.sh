#!/usr/bin/env bash
# Run a sweep in one Slurm allocation. The first node is the Ray head and runs the driver.
#   sbatch cluster/slurm.sh SWEEP.yaml [more arguments of `widthlab run`]
# Submit the same line again to continue the sweep. Finished trials are not trained again.
#SBATCH --job-name=widthlab
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail

storage=${WIDTHLAB_STORAGE:-$PWD/widthlab-runs}  # on a file system that every node mounts
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
port=$((20000 + SLURM_JOB_ID % 20000))

# Wait until the cluster has $1 nodes, at most five minutes.
joined() {
  python - "$head:$port" "$1" <<'PYTHON'
import sys, time
import ray

address, wanted = sys.argv[1], int(sys.argv[2])
deadline = time.monotonic() + 300
while time.monotonic() < deadline:
    try:
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, logging_level="error")
        if sum(node["Alive"] for node in ray.nodes()) >= wanted:
            sys.exit(0)
    except ConnectionError:
        pass
    time.sleep(1)
sys.exit(f"{wanted} Ray nodes have not joined {address} within five minutes")
PYTHON
}

srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
  ray start --head --node-ip-address="$head" --port="$port" --block &
joined 1
if ((${#nodes[@]} > 1)); then
  srun --nodes=$((${#nodes[@]} - 1)) --ntasks=$((${#nodes[@]} - 1)) --exclude="$head" --overlap \
    ray start --address="$head:$port" --block &
  joined ${#nodes[@]}
fi

# Slurm sends TERM two minutes before the end. Running trials then write a checkpoint.
widthlab run "$@" --address "$head:$port" --storage "$storage" &
driver=$!
trap 'kill -TERM "$driver"; wait "$driver"' TERM
wait "$driver"
