#!/usr/bin/env bash
#SBATCH --job-name=ddpo_fair
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --gpu-bind=none
#SBATCH --cpus-per-task=6
#SBATCH --time=12:00:00
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@180
#
# Trains on several nodes, one process a GPU, as JAX's Slurm support expects it.
#
#   sbatch launch/slurm.sh                               configs/mech_eng.py:sd15
#   sbatch --nodes=4 launch/slurm.sh configs/comp_sci.py:sd15 --config.seed=1
#
# Submit it from the repository, with .venv made there by launch/multi_gpu.sh or by
# `python3 -m venv .venv && .venv/bin/pip install '.[cuda]'`. runs/ must be on a disk
# that all nodes share. Before the time is up the run saves, leaves with status 75 and
# is queued again; the same command continues it.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:?submit it with sbatch}"

config="configs/mech_eng.py:sd15"
if [[ $# -gt 0 && "$1" != --* ]]; then
  config="$1"
  shift
fi

export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
export HF_HOME="${HF_HOME:-$PWD/.cache/huggingface}"

status=0
# A process that dies takes the others with it instead of leaving them waiting.
srun --kill-on-bad-exit=1 .venv/bin/python -m ddpo_fair.train --config="$config" \
  --config.distributed.enabled=true "$@" || status=$?

# Of several statuses srun gives the highest: 137 or 134 of a process that was killed or
# lost hides the others' 75. What kills a process every time is not started for ever.
restarts="${SLURM_RESTART_COUNT:-0}"
if [[ $status -eq 75 || ($status -gt 130 && $restarts -lt 10) ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
