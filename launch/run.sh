#!/usr/bin/env bash
# Trains and evaluates with one command; makes its own environment first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'EOF'
usage: bash launch/run.sh [OPTION ...]

Without options: pre-trains PLAN (reconstructed) on generated phantom radiographs, about ten
minutes on two CPU cores, and prints figures, checkpoint and pictures. Run it again to continue a
run that stopped. Paths are relative to the repository.

  --config=FILE            config file (default configs/demo.py; see configs/)
  --workdir=DIR            directory of the run (default runs/NAME, NAME that of the config)
  --config.data.records=DIR  records to train on, written by `python -m plan_jax.data.prepare`;
                           the demo makes its own
  --config.GROUP.KEY=VALUE any other setting, e.g. --config.optim.lr=1e-3
  --phantom-pairs=N        demo only: how many phantoms to draw (default 13000)
  --help                   this text

Environment: PYTHON (interpreter), PLAN_JAX_VENV (where the environment is made, default .venv),
PLAN_JAX_PLATFORM (cpu, cuda12, cuda13 or tpu instead of what is detected).
EOF
}

config=configs/demo.py workdir='' records='' pairs=13000
rest=()
for option in "$@"; do
  case "$option" in
    --help|-h) usage; exit 0 ;;
    --config=*) config="${option#*=}" ;;
    --workdir=*) workdir="${option#*=}" ;;
    --phantom-pairs=*) pairs="${option#*=}" ;;
    --config.data.records=*) records="${option#*=}" ;;
    --*) rest+=("$option") ;;
    *) echo "error: unknown argument '$option'; options are written --name=value (see --help)" >&2; exit 2 ;;
  esac
done
if [ ! -f "$config" ]; then
  echo "error: --config=$config: no such file; configs/ has: $(ls configs/*.py | tr '\n' ' ')" >&2
  exit 2
fi
name=$(basename "$config" .py)
workdir="${workdir:-runs/$name}"

. launch/env.sh
make_env
if [ -z "$records" ] && [ "$name" = demo ]; then
  records="$workdir/records"
  mkdir -p "$workdir" || { echo "error: --workdir=$workdir cannot be made; choose another" >&2; exit 2; }
  python -m plan_jax.data.prepare phantom --pairs "$pairs" --seed 3 --out "$records" \
    --preview "$workdir/phantoms.png"
fi
# exec: signals reach the training, which saves and stops.
[ -z "$records" ] || rest+=("--config.data.records=$records")  # else the config's own
exec python -m plan_jax.train --config="$config" --workdir="$workdir" ${rest[@]+"${rest[@]}"}
