"""Eight host-platform devices, no accelerator: set before JAX starts."""

import os

import quick_to_compile

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join([
    os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=8',
    quick_to_compile.FLAGS])
