#!/usr/bin/env bash
# Stable Diffusion 1.5 on a Cloud TPU pod slice, from nothing to the results.
#
#   export TPU=fair ZONE=us-central2-b TYPE=v4-32 BUCKET=my-bucket
#   launch/tpu_pod.sh create       asks for the slice
#   launch/tpu_pod.sh install      copies this source tree, installs it on every host
#   launch/tpu_pod.sh run [CONFIG] [FLAGS]     starts training, then shows its log
#   launch/tpu_pod.sh follow       shows the log again; Ctrl-C stops only the showing
#   launch/tpu_pod.sh stop         asks the run to save and leave; `run` continues it
#   launch/tpu_pod.sh fetch        copies the run's folders to runs/ here
#   launch/tpu_pod.sh delete       gives the slice back; the bucket stays
#
# BUCKET holds runs/, which all hosts mount: make it in the slice's region, with a
# hierarchical namespace (`gcloud storage buckets create gs://my-bucket --location=...
# --enable-hierarchical-namespace --uniform-bucket-level-access`). SPOT=1 asks for a
# cheaper slice that may be taken away; then `create`, `install` and `run` again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TPU="${TPU:-ddpo-fair}"
readonly ZONE="${ZONE:?name the zone, e.g. export ZONE=us-central2-b}"
readonly TYPE="${TYPE:-v4-32}"
readonly VERSION="${VERSION:-tpu-ubuntu2204-base}"

tpu() {  # verb, then flags
  local verb="$1"
  shift
  gcloud compute tpus tpu-vm "$verb" "$TPU" --zone="$ZONE" "$@"
}

on_all() {
  tpu ssh --worker=all --command="$1"
}

bucket() {
  echo "${BUCKET:?name the bucket for the results, e.g. export BUCKET=my-bucket}"
}

create() {
  local flags=(--accelerator-type="$TYPE" --version="$VERSION")
  flags+=(--scopes=https://www.googleapis.com/auth/cloud-platform)
  if [[ -n "${SPOT:-}" ]]; then flags+=(--spot); fi
  tpu create "${flags[@]}"
}

install() {
  local source where
  where="$(bucket)"
  source="$(mktemp --suffix=.tar.gz)"
  # shellcheck disable=SC2064
  trap "rm -f '$source'" EXIT
  git archive --format=tar.gz --output="$source" HEAD
  gcloud compute tpus tpu-vm scp "$source" "$TPU":ddpo_fair.tar.gz \
    --zone="$ZONE" --worker=all
  on_all "set -e
    mkdir -p ddpo_fair runs && tar -xzf ddpo_fair.tar.gz -C ddpo_fair
    curl -LsSf https://astral.sh/uv/install.sh | sh
    ~/.local/bin/uv venv --python 3.12 --seed --allow-existing venv
    ~/.local/bin/uv pip install --python venv/bin/python './ddpo_fair[tpu]'
    command -v gcsfuse > /dev/null || {
      . /etc/os-release
      echo \"deb [signed-by=/usr/share/keyrings/cloud.google.asc]\
 https://packages.cloud.google.com/apt gcsfuse-\$VERSION_CODENAME main\" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
      curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg |
        sudo tee /usr/share/keyrings/cloud.google.asc > /dev/null
      sudo apt-get -q update && sudo apt-get -q -y install gcsfuse
    }
    mountpoint -q runs || gcsfuse --implicit-dirs --only-dir runs $where runs"
}

run() {
  local config="configs/mech_eng.py:sd15" flags
  if [[ $# -gt 0 && "$1" != --* ]]; then
    config="$1"
    shift
  fi
  printf -v flags '%q ' "--config=$config" --config.distributed.enabled=true \
    --config.run.dir=../runs "$@"
  on_all "cd ddpo_fair
    nohup ../venv/bin/python -m ddpo_fair.train $flags \
      > ../train.log 2>&1 < /dev/null &
    echo \$! > ../train.pid"
  follow
}

follow() {
  tpu ssh --worker=0 --command="tail -n +1 -F train.log"
}

stop() {
  on_all "kill -TERM \$(cat train.pid)"
}

fetch() {
  local where
  where="$(bucket)"
  mkdir -p runs
  gcloud storage rsync --recursive "gs://$where/runs" runs
}

delete() {
  tpu delete
}

case "${1:-}" in
  create | install | run | follow | stop | fetch | delete) "$@" ;;
  *)
    sed -n '2,20p' "launch/tpu_pod.sh" >&2
    exit 2
    ;;
esac
