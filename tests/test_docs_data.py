"""Every command that docs/data.md and the README print about corpora runs, in the printed order."""

import pathlib
import re
import shlex

import corpus_layouts as layouts
import pytest

from plan_jax.data import draw
from plan_jax.data import inspect
from plan_jax.data import prepare
from plan_jax.data import records

_ROOT = pathlib.Path(__file__).parents[1]
_LAYOUTS = {'mimic': lambda root: layouts.mimic_cxr(root, studies=60), 'openi': layouts.openi,
            'chexpert': layouts.chexpert, 'padchest': layouts.padchest, 'rocov2': layouts.rocov2,
            'vindr-cxr': layouts.vindr, 'rsna': layouts.rsna, 'nih': layouts.nih,
            'siim': layouts.siim, 'pictures': layouts.folder}


def _commands(document: str) -> list[list[str]]:
  content = (_ROOT / document).read_text('utf-8').replace('\\\n', ' ')
  blocks = re.findall(r'```bash\n(.*?)```', content, re.DOTALL)
  return [shlex.split(line) for block in blocks for line in block.splitlines()
          if re.search(r'plan_jax\.data\.(prepare|draw|inspect) ', line) and ' manifest ' not in line]


def _make(folder: pathlib.Path) -> None:
  """The layouts under the names that the documents use."""
  for name, make in _LAYOUTS.items():
    (folder / name).mkdir()
    make(folder / name)
  (folder / 'ms-cxr').mkdir()
  # MS-CXR lies on the images of MIMIC-CXR: the phrases' images go there.
  layouts.ms_cxr(folder / 'mimic')
  (folder / 'mimic/MS_CXR_Local_Alignment_v1.1.0.csv').rename(
      folder / 'ms-cxr/MS_CXR_Local_Alignment_v1.1.0.csv')


@pytest.mark.parametrize('document', ['docs/data.md', 'README.md'])
def test_printed_commands_run(document, tmp_path, monkeypatch):
  _make(tmp_path)
  monkeypatch.chdir(tmp_path)
  commands = _commands(document)
  assert commands
  made = []
  for python, dash, module, *arguments in commands:
    assert (python, dash) == ('python', '-m')
    if module == 'plan_jax.data.draw':
      arguments = ['1' if part == '200' else part for part in arguments]  # the layout is small
      assert draw.main(arguments) == 0, arguments
      continue
    if module == 'plan_jax.data.inspect':
      assert inspect.main(arguments) == 0, arguments
      continue
    assert prepare.main([*arguments, '--workers', '1', '--vocab-size', '300']) == 0, arguments
    if '--dry-run' not in arguments:
      made.append(arguments[arguments.index('--out') + 1])
  assert made and all(records.read_card(name)['rows']['records'] for name in made)
