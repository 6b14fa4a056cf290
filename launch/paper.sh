#!/usr/bin/env bash
# Every experiment of the paper (Chen and Foussereau, 2024), each as one command.
#
#   launch/paper.sh balance_mech                 one experiment
#   launch/paper.sh all                          all of them, one after the other
#   launch/paper.sh list                         names and figures
#
# What follows the name goes to the program, e.g. --config.seed=1 or --plan. A run is
# named paper_NAME_SEED, unless --config.run.name says otherwise.
# MODEL=embedded or MODEL=sd15 chooses the model; without it the host decides.
# The same command again continues what was interrupted.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly PYTHON="${PYTHON:-python3}"
readonly MODEL="${MODEL:-}"

list() {
  cat <<'EOF'
shift             R_shift, electrical engineer               figures 5 to 7
balance_mech      R_balance, mechanical engineer             figures 8 and 9
balance_comp      R_balance, computer scientist              figures 10 and 11
truly_ppo         Truly PPO instead of PPO, mechanical eng.  figure 12
person_prompt     "photo of a" instead of "photo of the face of a"    table I
many_prompts      40 occupations at once instead of one      section III-D
confidence        recognised at 0.5 instead of 0.7           section III-C
EOF
}

train() {  # config file, then flags
  local config="configs/$1.py${MODEL:+:$MODEL}"
  shift
  "$PYTHON" -m ddpo_fair.train --config="$config" "$@"
}

prompts() {  # of the occupations that are not held out
  "$PYTHON" -c '
from ddpo_fair.embedded import occupations
print(tuple(f"photo of the face of {occupations.phrase(o)}" for o, job in occupations.BY_NAME.items() if not job.held_out))
'
}

host_model() {  # what a config file takes without MODEL
  "$PYTHON" -c '
from ddpo_fair import accelerator
print("sd15" if accelerator.shown() else "embedded")
'
}

run() {  # name, then flags
  local name="$1"
  shift
  local flag before="" seed=0 named=no
  for flag in "$@"; do
    case "${before#-}" in
      -config.seed | config.seed) seed="$flag" ;;
    esac
    case "${flag#-}" in
      -config.seed=* | config.seed=*) seed="${flag#*=}" ;;
      -config.run.name* | config.run.name*) named=yes ;;
    esac
    before="$flag"
  done
  if [[ "$named" == no ]]; then
    set -- "--config.run.name=paper_${name}_$seed" "$@"
  fi
  case "$name" in
    shift)  # without the restraint that the embedded model has by default
      train elec_eng_shift --config.train.base_kl_weight=0 --config.reward.views=1 \
        '--config.sample.preserve_prompts=()' "$@"
      ;;
    balance_mech) train mech_eng_unrestrained "$@" ;;
    balance_comp) train comp_sci "$@" ;;
    truly_ppo) train truly_ppo "$@" ;;
    person_prompt)
      train mech_eng_unrestrained '--config.prompts=photo of a mechanical engineer' "$@"
      ;;
    many_prompts)
      # At least four images of each prompt in an epoch, on one device. A quarter of the
      # images are of prompts that say the gender, or the model would soon not follow those.
      local batch=64 batches=4
      if [[ "${MODEL:-$(host_model)}" == sd15 ]]; then batch=8 batches=32; fi
      train mech_eng_unrestrained "--config.prompts=$(prompts)" \
        --config.sample.batch_per_device=$batch --config.sample.batches=$batches \
        --config.sample.explicit_share=0.25 --config.epochs=30 \
        --config.eval.images=400 --config.eval.every_epochs=5 "$@"
      ;;
    confidence) train mech_eng_unrestrained --config.attributes.gender.confidence_threshold=0.5 "$@" ;;
    *)
      echo "paper.sh: there is no experiment '$name'; these there are:" >&2
      list >&2
      return 2
      ;;
  esac
}

main() {
  local name="${1:-list}"
  shift || true
  case "$name" in
    list | -h | --help) list ;;
    all)
      local each
      while read -r each _; do run "$each" "$@"; done < <(list)
      ;;
    *) run "$name" "$@" ;;
  esac
}

main "$@"
