"""Eight host-platform devices, no accelerator: set before JAX starts."""

import os

os.environ['JAX_PLATFORMS'] = 'cpu'
# Most of the tests' time is compiling: their programs need not be fast.
os.environ['XLA_FLAGS'] = (
    os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
    ' --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true')
