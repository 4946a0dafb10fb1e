"""The architecture's rules, checked on the import statements."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LEVELS = [  # a module imports only from its own level and those above it in this list
    {'errors', 'shapes', 'merge', 'rules', 'config', 'roll_call'},
    {'models', 'losses', 'data', 'mesh', 'in_parts', 'stages', 'optim', 'metrics', 'prompts',
     'flops', 'processes', 'profiling', 'command_line', 'hlo', 'tpus'},
    {'objectives', 'step', 'checkpoint', 'evals', 'inference', 'evaluation', 'ablation', 'report',
     'page', 'probes', 'tasks', 'convert'},
    {'train', 'compile_check', 'eval_zero_shot', 'evaluate', 'ablate', 'data.prepare', 'data.draw',
     'data.inspect', 'convert.__main__'},
]
OWNERS = {  # each heavy dependency has one owner
    'grain': {'plan_jax.data.pipeline'},
    'orbax': {'plan_jax.checkpoint'},
    'tensorflow_datasets': {'plan_jax.data.records'},
    'array_record': {'plan_jax.data.records'},
    'tensorboardX': {'plan_jax.metrics'},
    'tokenizers': {'plan_jax.data.tokenize'},
    'ml_collections': {'plan_jax.config', 'plan_jax.command_line'},
    'matplotlib': {'plan_jax.report'},
    'jinja2': {'plan_jax.page.render'},
    'markupsafe': {'plan_jax.page.render'},
    'sklearn': {
        'plan_jax.evals.decisions', 'plan_jax.evals.zero_shot', 'plan_jax.evals.linear_probe'},
    'pycocotools': {'plan_jax.evals.detection'},
    'imagecodecs': {'plan_jax.data.dicom_codecs'},
    'pydicom': {'plan_jax.data.dicom'},
    'safetensors': {  # the last is copied into exports
        'plan_jax.convert.files', 'plan_jax.convert.to_stablehlo', 'plan_jax.convert.plan_torch'},
    'selenium': set(),
    'torch': {  # the last is copied into exports
        'plan_jax.convert.files', 'plan_jax.convert.to_onnx', 'plan_jax.convert.plan_torch'},
    'onnx': set(),
    'onnxscript': set(),
    'onnxruntime': {'plan_jax.convert.to_onnx'},
    'tensorflow': set(),
    'pickle': set(),
}


def _modules() -> dict[str, Path]:
  files = sorted((ROOT / 'plan_jax').rglob('*.py'))
  return {'.'.join(f.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): f
          for f in files}


@functools.cache
def _imports(path: Path) -> set[str]:
  found = set()
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f'{path}: relative import'
      for alias in node.names:  # a module of the package, or a name in one
        whole = f'{node.module}.{alias.name}'
        found.add(whole if whole in MODULES else node.module)
  return found


def _level(module: str) -> int:
  name = module.removeprefix('plan_jax.')
  for number, names in reversed(list(enumerate(LEVELS))):
    if name in names or name.split('.')[0] in names:
      return number
  raise AssertionError(f'{module}: belongs to no level; add it to LEVELS')


MODULES = _modules()
EDGES = {module: {i for i in _imports(path) if i in MODULES}
         for module, path in MODULES.items() if module != 'plan_jax'}


@pytest.mark.parametrize('module', EDGES)
def test_imports_point_down(module):
  for other in EDGES[module]:
    assert _level(other) <= _level(module), f'{module} imports {other}, which lies above it'
    assert _level(other) < len(LEVELS) - 1, f'{module} imports the entry point {other}'


def test_no_cycles():
  done: set[str] = set()

  def visit(module, trail):
    assert module not in trail, ' -> '.join([*trail, module])
    if module not in done:
      for other in EDGES[module]:
        visit(other, [*trail, module])
      done.add(module)

  for module in EDGES:
    visit(module, [])


@pytest.mark.parametrize('package', OWNERS)
def test_heavy_dependencies_have_one_owner(package):
  users = {module for module, path in MODULES.items()
           if any(i.split('.')[0] == package for i in _imports(path))}
  assert users <= OWNERS[package]


def test_files_stay_small():
  long = {str(path): lines for path in MODULES.values()
          if (lines := path.read_text().count('\n')) > 400}
  assert not long
