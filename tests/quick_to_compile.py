"""Options of XLA under which the tests' programs compile in half the time, and run slower."""

FLAGS = '--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true'
