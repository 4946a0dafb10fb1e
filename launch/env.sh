# Sourced by run.sh and test.sh: makes the environment once (.venv in the repository, or
# $PLAN_JAX_VENV) and activates it. Usage: make_env [EXTRA]; EXTRA is an extra of setup.cfg.

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    [ -n "$candidate" ] && command -v "$candidate" >/dev/null || continue
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11 or newer found; install one, or name it: PYTHON=/path/to/python3.12" >&2
  return 1
}

# Which build of JAX this machine wants: cpu, tpu, cuda12 or cuda13.
find_platform() {
  local driver
  if [ -n "${PLAN_JAX_PLATFORM:-}" ]; then
    echo "$PLAN_JAX_PLATFORM"
  # Google's PCI vendor id: other makers' accelerators have /dev/accel* as well.
  elif grep -qs 0x1ae0 /sys/bus/pci/devices/*/vendor || [ -n "${TPU_NAME:-}${TPU_WORKER_ID:-}" ]; then
    echo tpu
  elif driver=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null) && [ -n "$driver" ]; then
    # CUDA 13 needs driver 580 or newer.
    if [ "${driver%%.*}" -ge 580 ]; then echo cuda13; else echo cuda12; fi
  else
    echo cpu
  fi
}

make_env() {
  local extra="${1:-}" venv="${PLAN_JAX_VENV:-$PWD/.venv}" platform want python
  platform=$(find_platform)
  # Installed again when what it was made from has changed.
  want="$platform $extra $(cat requirements.txt setup.cfg | cksum)"
  # One process at a time makes it; the others find it made.
  mkdir -p "$venv"
  if command -v flock >/dev/null; then
    exec 9>"$venv/.lock"
    flock 9
  fi
  if [ "$(cat "$venv/.made-for${extra:+-$extra}" 2>/dev/null)" != "$want" ]; then
    python=$(find_python) || return 1
    echo "making the environment in $venv for $platform (a few minutes, once)"
    "$python" -m venv "$venv"
    local packages=(-e ".${extra:+[$extra]}")
    [ "$platform" = cpu ] || packages+=("jax[$platform]")
    if ! "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}"; then
      echo "error: installation failed; see pip's message above" >&2
      return 1
    fi
    echo "$want" > "$venv/.made-for${extra:+-$extra}"
  fi
  exec 9>&-
  # Large pages for arrays: on a CPU a step takes an eighth less time (docs/performance.md).
  if [ "$platform" = cpu ]; then
    export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
  fi
  # Compiled programs are kept: starting again, or continuing, takes a fraction of the time.
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$venv/xla-cache}"
  # shellcheck disable=SC1091
  . "$venv/bin/activate"
}
