"""Eight host-platform devices, no accelerator: set before JAX starts."""

import os

import quick_to_compile

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ' '.join([
    os.environ.get('XLA_FLAGS', ''), '--xla_force_host_platform_device_count=8',
    quick_to_compile.FLAGS])

# Started first, so that no process works alone at the end: those that take longest.
LONG = ('test_pod.py', 'test_step_objectives.py', 'test_train.py', 'test_step.py', 'test_step_memory.py',
        'test_ablate.py')


def pytest_configure(config):
  config.option.loadscopereorder = False  # pytest-xdist starts files of few tests last: test_pod has one


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
