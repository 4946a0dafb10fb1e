"""Options of XLA under which the tests' programs compile in a third of the time, and run slower."""

FLAGS = (
    '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
    ' --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1')

if __name__ == '__main__':
  print(FLAGS)
