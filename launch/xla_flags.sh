# Sourced by run.sh: settings of XLA, each with its reason. set_xla_flags PLATFORM; what the user
# has in XLA_FLAGS comes later and wins. On CPU and TPU XLA's defaults stand: we have measured
# nothing better.

set_xla_flags() {
  local ours=''
  case "$1" in
    cuda*)
      # Gathers of split parameters and sums of gradients run beside the computation.
      ours='--xla_gpu_enable_latency_hiding_scheduler=true'
      ;;
  esac
  [ -z "$ours" ] || export XLA_FLAGS="$ours${XLA_FLAGS:+ $XLA_FLAGS}"
}
