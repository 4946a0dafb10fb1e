#!/usr/bin/env bash
# Runs the tests; makes its own environment first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
  cat <<'EOF'
usage: bash launch/test.sh [OPTION ...]

Runs all tests, in two processes. Options go to pytest (-k grounding, -x, tests/test_losses.py, ...), except:

  --config=FILE, --config.GROUP.KEY=VALUE
                  go to the tests' training runs, e.g. --config.optim.lr=1e-4 (not the settings
                  that make those runs tiny, such as train.steps)
  --workdir=DIR   keeps the workdir of the uninterrupted test run in a folder of DIR

Environment: PLAN_JAX_DATA (directory of real image packs; the tests that need them are skipped
without it), and PYTHON, PLAN_JAX_VENV, PLAN_JAX_PLATFORM as for launch/run.sh.
EOF
}

run_options=() pytest_options=()
for option in "$@"; do
  case "$option" in
    --help|-h) usage; exit 0 ;;
    --config=*|--config.*|--workdir=*) run_options+=("$(printf '%q' "$option")") ;;
    *) pytest_options+=("$option") ;;
  esac
done
. launch/env.sh
make_env test
export PLAN_JAX_RUN_OPTIONS="${run_options[*]-}"
# Most of the time goes into compiling, on one core at a time; a file's tests share fixtures.
python -m pytest -n 2 --dist loadfile ${pytest_options[@]+"${pytest_options[@]}"}
