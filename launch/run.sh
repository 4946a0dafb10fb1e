#!/usr/bin/env bash
# Trains and evaluates with one command; makes its own environment first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'EOF'
usage: bash launch/run.sh [OPTION ...]

Without options: pre-trains PLAN (reconstructed) on generated phantom radiographs, about a quarter
of an hour on two CPU cores, and prints figures, checkpoint and pictures. Run it again to continue
a run that stopped. Paths are relative to the repository.

  --config=FILE            config file (default configs/demo.py; see configs/)
  --workdir=DIR            directory of the run (default runs/NAME, NAME that of the config)
  --config.data.records=DIR  records to train on, written by `python -m plan_jax.data.prepare`;
                           the demo makes its own
  --config.GROUP.KEY=VALUE any other setting, e.g. --config.optim.lr=1e-3
  --phantom-pairs=N        demo only: how many phantoms to draw (default 13000)
  --dry-run                print where this is and what would run, and change nothing
  --coordinator=HOST:PORT  several processes by hand: where process 0 is (PORT and the next one
  --num-processes=N        are used), how many there are, and which one this is, from 0. Slurm
  --process-id=I           (srun), MPI (mpirun), Kubernetes and TPU slices are found without
                           (docs/launch.md)
  --start-timeout=SECONDS  how long processes wait for each other (default 1800)
  --help                   this text

Environment: PYTHON (interpreter), PLAN_JAX_VENV (where the environment is made, default .venv),
PLAN_JAX_PLATFORM (cpu, cuda12, cuda13 or tpu instead of what is detected).
EOF
}

config=configs/demo.py workdir='' records='' pairs=13000
dry_run='' coordinator='' processes='' process=''
rest=()
for option in "$@"; do
  case "$option" in
    --help|-h) usage; exit 0 ;;
    --config=*) config="${option#*=}" ;;
    --workdir=*) workdir="${option#*=}" ;;
    --dry-run) dry_run=1 ;;
    --coordinator=*) coordinator="${option#*=}" ;;
    --num-processes=*) processes="${option#*=}" ;;
    --process-id=*) process="${option#*=}" ;;
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
case "$workdir" in
  *://*) echo "error: --workdir=$workdir: addresses of buckets are not taken; mount the bucket" \
    "(docs/launch.md)" >&2; exit 2 ;;
esac

. launch/env.sh
. launch/cluster.sh
. launch/xla_flags.sh
find_place
platform=$(find_platform)
set_xla_flags "$platform"
# Several processes on a host with CUDA: each takes its own GPU, unless the scheduler dealt them.
case "$platform" in
  cuda*) if [ "$on_host" -gt 1 ]; then export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-$slot}"; fi ;;
esac
if [ "$processes" -gt 1 ]; then
  [ "$platform" != cpu ] || export JAX_PLATFORMS=cpu  # the training needs to know before JAX starts
  rest+=("--coordinator=$coordinator" "--num-processes=$processes" "--process-id=$process")
fi
own=''  # the demo draws its own records
if [ -z "$records" ] && [ "$name" = demo ]; then
  records="$workdir/records" own=1
fi
[ -z "$records" ] || rest+=("--config.data.records=$records")  # else the config's own
prepare=(python -m plan_jax.data.prepare phantom --pairs "$pairs" --seed 3 --out "$records"
  --preview "$workdir/phantoms.png")
train=(python -m plan_jax.train --config="$config" --workdir="$workdir" ${rest[@]+"${rest[@]}"})

echo "found: $found; process $process of $processes; $platform${XLA_FLAGS:+; XLA_FLAGS=$XLA_FLAGS}"
if [ -n "$dry_run" ]; then
  [ -z "$own" ] || [ "$process" != 0 ] || printf 'would run: %s\n' "${prepare[*]}"
  printf 'would run: %s\n' "${train[*]}"
  exit 0
fi
make_env
# The others wait for process 0 where they call the roll.
if [ -n "$own" ] && [ "$process" = 0 ]; then
  mkdir -p "$workdir" || { echo "error: --workdir=$workdir cannot be made; choose another" >&2; exit 2; }
  "${prepare[@]}"
fi
# exec: signals reach the training, which saves and stops.
exec "${train[@]}"
