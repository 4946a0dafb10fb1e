#!/usr/bin/env bash
# Runs the tests; makes its own environment first. Options go to pytest, e.g. -k grounding.
# The options of a run (--config=, --workdir=, --config.*) go to the end-to-end test.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. launch/env.sh
make_env test
python -m pytest "$@"
