"""Class-balanced evaluation lists."""

import corpus_layouts as layouts
import pytest

from plan_jax.data import draw
from plan_jax.data import prepare
from plan_jax.data import records
from plan_jax.data import rows


def _item(name: str, patient: str, *, labels=(), uncertain=(), split='train') -> rows.Item:
  row = rows.Row(
      manifest='m', line=1, id=name, image=name, image_name=name, text='x', report='',
      patient=patient, split=split, labels=tuple(labels), negatives=(), uncertain=tuple(uncertain),
      annotations=(), is_annotated=False, size=None)
  return rows.Item(id=name, image=name, patient=patient, split=split, rows=(row,))


def test_one_label_alone_and_one_image_a_patient():
  items = [
      _item('a1', 'a', labels=('edema',)), _item('a2', 'a', labels=('edema',)),
      _item('b', 'b', labels=('edema', 'fracture')),  # another class, though not of the list
      _item('c1', 'c', uncertain=('edema',)),  # for evaluation only what is certain
      _item('c2', 'c', labels=('edema',), uncertain=('mass',)), _item('c3', 'c', labels=('edema',)),
      _item('d', 'd', labels=('cardiomegaly',)), _item('e', 'e', labels=('cardiomegaly',)),
      _item('f', 'f', labels=('cardiomegaly',), split='test')]
  drawn = dict(classes=['edema', 'cardiomegaly'], split='train', seed=0)
  assert draw.draw(items, per_class=2, **drawn) == ['a1', 'c3', 'd', 'e']
  assert draw.draw(items[::-1], per_class=1, **drawn) == draw.draw(items, per_class=1, **drawn)
  with pytest.raises(draw.DrawError, match='edema 2, cardiomegaly 2.*smaller'):
    draw.draw(items, per_class=3, **drawn)


def test_a_list_of_a_corpus_keeps_it_out_of_training(tmp_path, capsys):
  root, ids = tmp_path / 'in', tmp_path / 'ids.txt'
  layouts.mimic_cxr(root)
  command = ['mimic_cxr', '--root', str(root), '--out', str(ids), '--classes']
  assert draw.main([*command, 'Atelectasis,Consolidation', '--per-class', '9']) == 2
  assert 'atelectasis 1, consolidation 0' in capsys.readouterr().err
  assert draw.main([*command, 'Atelectasis', '--per-class', '1']) == 0
  assert '1 ids in' in capsys.readouterr().out
  assert draw.main([*command, 'Atelectasis', '--out', str(tmp_path)]) == 2
  assert 'is a directory' in capsys.readouterr().err
  assert draw.main([*command, 'Atelectasis', '--out', str(ids / 'below')]) == 2
  assert 'cannot be written' in capsys.readouterr().err
  assert draw.main([*command, 'Atelectasis', '--seed', '-1']) == 2
  assert '--seed -1: must be 0 or more' in capsys.readouterr().err
  comment, drawn = ids.read_text().splitlines()
  assert comment.startswith('# mimic_cxr, 1 x 1 of split train, seed 0: atelectasis')
  for name, option in (('a', '--exclude-ids'), ('b', '--only-ids')):
    assert prepare.main([
        'mimic_cxr', '--root', str(root), '--workers', '1', '--vocab-size', '300', '--out',
        str(tmp_path / name), option, str(ids)]) == 0
  [example] = records.Records(tmp_path / 'b', 'test')
  assert example.id == drawn and example.labels == ('atelectasis',)
  patients = {e.patient for split in records.SPLITS for e in records.Records(tmp_path / 'a', split)}
  assert len(patients) == 5 and example.patient not in patients
