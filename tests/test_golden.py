"""Golden files: the resolved config and parameter list of each experiment.

A diff there shows what a change does to every run. After a wanted change:
  python tests/test_golden.py
"""

import importlib.util
import json
from pathlib import Path

import jax
import pytest

from plan_jax import config as config_lib
from plan_jax import step

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / 'tests' / 'golden'
NAMES = sorted(
    path.stem for path in (ROOT / 'configs').glob('*.py') if not path.stem.startswith('ablation'))  # grids
VOCAB_SIZE = 4096


def read_config(name: str) -> config_lib.Config:
  """The resolved config of configs/NAME.py."""
  spec = importlib.util.spec_from_file_location(name, ROOT / 'configs' / f'{name}.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return config_lib.resolve(module.get_config())


def describe(name: str) -> str:
  """The text of a golden file."""
  config = read_config(name)
  model = step.build_model(config, vocab_size=VOCAB_SIZE)
  key = jax.random.PRNGKey(0)
  variables = jax.eval_shape(lambda: model.init(
      {'params': key, 'dropout': key}, step.empty_batch(config.data, size=2), train=False))
  lines, total = [], 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    lines.append(f'{jax.tree_util.keystr(path, simple=True, separator="/")} '
                 f'{leaf.dtype}{list(leaf.shape)}')
    if path[0].key == 'params':
      total += leaf.size
  return '\n'.join([
      json.dumps(config_lib.to_dict(config), indent=1), '',
      f'{total} parameters with a vocabulary of {VOCAB_SIZE}', *lines, ''])


@pytest.mark.parametrize('name', NAMES)
def test_config_and_parameters_are_as_recorded(name):
  assert describe(name) == (GOLDEN / f'{name}.txt').read_text(), (
      'after a wanted change run: python tests/test_golden.py')


if __name__ == '__main__':
  GOLDEN.mkdir(exist_ok=True)
  for each in NAMES:
    (GOLDEN / f'{each}.txt').write_text(describe(each))
