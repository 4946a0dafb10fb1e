"""Prompt files: what they mean, and what is said of faults."""

import pathlib

import pytest

from plan_jax import prompts

SHIPPED = sorted((pathlib.Path(__file__).parents[1] / 'configs' / 'prompts').glob('*.toml'))


def _write(tmp_path, text):
  path = tmp_path / 'prompts.toml'
  path.write_text(text)
  return path


def test_reads_classes_labels_and_products(tmp_path):
  first, second = prompts.read(_write(tmp_path, '''
    [effusion]
    label = "Pleural_Effusion"
    positive = ["{small|large|} effusion on the {left|right}", "small effusion on the left"]
    negative = ["no effusion"]
    [pneumonia]
    label = ["bacteria", "Virus"]
    positive = ["pneumonia"]
  '''))
  assert first.name == 'effusion' and first.labels == ('pleural effusion',)
  assert first.positive == (
      'small effusion on the left', 'small effusion on the right', 'large effusion on the left',
      'large effusion on the right', 'effusion on the left', 'effusion on the right')
  assert first.negative == ('no effusion',)
  assert second.labels == ('bacteria', 'virus') and second.negative == ()


@pytest.mark.parametrize('text, message', [
    ('[a\npositive = ["x"]', 'not valid TOML.*line 1'),
    ('', 'no classes'),
    ('positive = ["x"]', 'stands outside a class'),
    ('[a]\nlabel = "b"', r'\[a\] has no prompts'),
    ('[a]\npositive = []', r'\[a\] positive = \[\]: is empty'),
    ('[a]\npositive = ["x"]\nnegative = []', r'negative = \[\]: is empty'),
    ('[a]\npositive = "x"', "positive = 'x': must be a list"),
    ('[a]\npositive = ["x", 3]', 'must be a list of texts'),
    ('[a]\npositive = ["x", " "]', 'empty text'),
    ('[a]\npositive = ["x"]\nlabels = "b"', "unknown key 'labels'.*label, positive"),
    ('[a]\npositive = ["{x|y"]', 'unpaired or nested'),
    ('[a]\npositive = ["{x|}"]', 'makes an empty prompt'),
    ('[a]\npositive = ["%s"]' % ' '.join(['{a|b|c|d|e|f|g|h|i|j}'] * 4), 'fewer alternatives'),
])
def test_faults_are_named(tmp_path, text, message):
  with pytest.raises(prompts.PromptError, match=message) as raised:
    prompts.read(_write(tmp_path, text))
  assert 'prompts.toml' in str(raised.value)


def test_a_missing_file_is_named(tmp_path):
  with pytest.raises(prompts.PromptError, match='absent.toml cannot be read'):
    prompts.read(tmp_path / 'absent.toml')


def test_unknown_classes_are_listed_with_what_there_is(tmp_path):
  classes = prompts.read(_write(tmp_path, '[Edema]\npositive = ["edema"]'))
  prompts.require_known(classes, known=['EDEMA', 'mass'], where='labels.csv')
  with pytest.raises(prompts.PromptError, match="'edema'.*labels.csv.*it has: hernia, mass"):
    prompts.require_known(classes, known=['Mass', 'Hernia'], where='labels.csv')


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_read(path):
  classes = prompts.read(path)
  assert len(classes) >= 2 and all(entry.positive for entry in classes)


def _shipped(name):
  path, = (path for path in SHIPPED if path.stem == name)
  return {entry.name: entry for entry in prompts.read(path)}


def test_shipped_sets_follow_their_protocols():
  chexpert = _shipped('chexpert5')
  assert [entry.labels[0] for entry in chexpert.values()] == [
      'atelectasis', 'cardiomegaly', 'consolidation', 'edema', 'pleural effusion']
  assert 'mild linear atelectasis at the left lung base' in chexpert['Atelectasis'].positive
  nih = _shipped('nih14')
  assert len(nih) == 14
  for entry in nih.values():
    assert all(text.startswith('There is ') and text.endswith('.') for text in entry.positive)
    if entry.name != 'Infiltration':
      assert any(entry.labels[0] in text for text in entry.positive)


@pytest.mark.parametrize('name, classes', [
    ('rsna', {'pneumonia', 'normal'}), ('covid', {'covid-19', 'pneumonia', 'normal'})])
def test_pneumonia_sets_have_both_sides(name, classes):
  entries = _shipped(name)
  assert set(entries) == classes
  for entry in entries.values():
    assert entry.negative and not set(entry.positive) & set(entry.negative)
  assert 'findings consistent with pneumonia' in entries['pneumonia'].positive
  assert 'no evidence of pneumonia' in entries['pneumonia'].negative
  assert 'focal bacterial pneumonia in the left lower lobe' in entries['pneumonia'].positive
  # What speaks for being normal speaks against a disease, never for it.
  assert not set(entries['normal'].positive) & {
      text for entry in entries.values() if entry.name != 'normal' for text in entry.positive}
