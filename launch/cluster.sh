# Sourced by run.sh: where this process stands in a run of several. find_place sets
#   found        what was recognised, in words
#   coordinator  HOST:PORT of process 0; empty for a process alone
#   processes    how many there are
#   process      which one this is, from 0
#   on_host      how many of them run on this host
#   slot         which of those this is, from 0
# --num-processes and --process-id win over Slurm, Slurm over MPI, MPI over Kubernetes, Kubernetes over TPU VMs.

DEFAULT_PORT=8476

# The first host of a Slurm list such as node[03-05,9],other: node03.
first_of() {
  local list="$1" head
  if command -v scontrol >/dev/null; then
    scontrol show hostnames "$list" | head -n 1
    return
  fi
  head="${list%%,*}"
  case "$head" in
    *\[*) list="${head#*\[}"; list="${list%%\]*}"; echo "${head%%\[*}${list%%-*}" ;;
    *) echo "$head" ;;
  esac
}

# An attribute of a TPU VM from its metadata server; nothing elsewhere.
tpu_attribute() {
  curl -sf -m 2 -H 'Metadata-Flavor: Google' \
    "http://metadata.google.internal/computeMetadata/v1/instance/attributes/$1" 2>/dev/null || true
}

find_place() {
  local hosts
  on_host=1 slot=0
  if [ -n "$processes$process" ]; then
    found="processes by --coordinator, --num-processes and --process-id"
  elif [ -n "${SLURM_STEP_ID:-}" ] && [ -n "${SLURM_PROCID:-}" ]; then
    found="Slurm job $SLURM_JOB_ID, step $SLURM_STEP_ID"
    processes="${SLURM_STEP_NUM_TASKS:-$SLURM_NTASKS}" process="$SLURM_PROCID"
    on_host="${SLURM_STEP_TASKS_PER_NODE:-1}" slot="${SLURM_LOCALID:-0}"
    on_host="${on_host%%[^0-9]*}"
    # Of its own for each step, even, and below the ports that systems give to outgoing calls.
    [ -n "$coordinator" ] || coordinator="$(first_of "${SLURM_STEP_NODELIST:-$SLURM_JOB_NODELIST}"):$((
      20000 + 2 * ((SLURM_JOB_ID * 8 + SLURM_STEP_ID) % 6000)))"
  elif [ -n "${OMPI_COMM_WORLD_SIZE:-}" ]; then
    found="Open MPI"
    processes="$OMPI_COMM_WORLD_SIZE" process="$OMPI_COMM_WORLD_RANK"
    on_host="${OMPI_COMM_WORLD_LOCAL_SIZE:-1}" slot="${OMPI_COMM_WORLD_LOCAL_RANK:-0}"
  elif [ -n "${PMI_SIZE:-}" ]; then
    found="MPICH or Intel MPI"
    processes="$PMI_SIZE" process="$PMI_RANK"
    on_host="${MPI_LOCALNRANKS:-1}" slot="${MPI_LOCALRANKID:-0}"
  elif [ -n "${JOB_COMPLETION_INDEX:-}" ] && [ -n "${PLAN_JAX_COORDINATOR:-}" ]; then
    found="Kubernetes, indexed job"
    processes="${PLAN_JAX_NUM_PROCESSES:?error: set it beside PLAN_JAX_COORDINATOR}"
    process="$JOB_COMPLETION_INDEX" coordinator="${coordinator:-$PLAN_JAX_COORDINATOR}"
  elif [ "$(find_platform)" = tpu ]; then
    hosts="${TPU_WORKER_HOSTNAMES:-}" process="${TPU_WORKER_ID:-}"
    if [ -z "$hosts" ]; then  # name:uid:address of each worker
      hosts=$(tpu_attribute worker-network-endpoints | tr , '\n' | cut -d: -f3 | paste -sd, -)
      process=$(tpu_attribute agent-worker-number)
    fi
    processes=$(tr , '\n' <<<"$hosts" | grep -c . || true)
    found="TPU VM, $processes worker(s)" coordinator="${coordinator:-${hosts%%,*}:$DEFAULT_PORT}"
  elif [ -n "$coordinator" ]; then
    echo "error: --coordinator=$coordinator: on hosts without a scheduler --num-processes and" \
      "--process-id are needed as well" >&2
    return 2
  else
    found="one host"
  fi
  if [ "${processes:-1}" = 1 ] || [ "$processes" = 0 ]; then
    coordinator='' processes=1 process=0
  elif [ -z "$coordinator" ] && [ "$on_host" = "$processes" ]; then
    coordinator="127.0.0.1:$DEFAULT_PORT"
  elif [ -z "$coordinator" ]; then
    echo "error: $found with $processes processes on several hosts does not say where process 0" \
      "is; add --coordinator=HOST:PORT, HOST that of rank 0" >&2
    return 2
  fi
}
