#!/usr/bin/env bash
# Trains Stable Diffusion 1.5 on all GPUs of this host.
#
#   launch/multi_gpu.sh                                configs/mech_eng.py:sd15
#   launch/multi_gpu.sh configs/comp_sci.py:sd15 --config.seed=1
#
# Makes .venv beside this folder on the first call. One process drives all GPUs, so
# nothing has to find anything. The same command again continues.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

config="configs/mech_eng.py:sd15"
if [[ $# -gt 0 && "$1" != --* ]]; then
  config="$1"
  shift
fi

if ! nvidia-smi --list-gpus; then
  echo "multi_gpu.sh: no NVIDIA GPU answers; try launch/tpu_pod.sh or a CPU with" \
    "python3 -m ddpo_fair.train --config=configs/mech_eng.py" >&2
  exit 2
fi

if [[ ! -x .venv/bin/python ]]; then
  python3 -m venv .venv
  .venv/bin/pip install --quiet '.[cuda]'
fi

# The default leaves a quarter of each GPU unused.
export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"

.venv/bin/python -m ddpo_fair.train --config="$config" --plan "$@"
exec .venv/bin/python -m ddpo_fair.train --config="$config" "$@"
