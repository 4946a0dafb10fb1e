"""Which of several pictures that are alike stay."""

from plan_jax.data import duplicates
from plan_jax.data import likeness
from plan_jax.data import rows


def _outcome(name: str, split: str, bits: int) -> tuple[bool, rows.Outcome]:
  """A picture whose hash differs from others' by the difference of `bits`."""
  code = f'{(1 << bits) - 1:064x}'
  return True, rows.Outcome(
      example=None, id=name, split=split, pixels=name, likeness=code, sources=((split, 1),))


def _choose(*made, near=duplicates.Near.DROP, others=()) -> duplicates.Choice:
  return duplicates.choose([made], [], near=near, others=others)


def _kept(choice: duplicates.Choice) -> list[str]:
  return [outcome.id for part in choice.kept for outcome in part if outcome]


def test_what_is_dropped_takes_nothing_along():
  """b goes because of c; a is near to b alone, and stays."""
  choice = _choose(_outcome('a', 'train', 1), _outcome('b', 'val', 31), _outcome('c', 'test', 61))
  assert _kept(choice) == ['a', 'c'] and choice.counts == {'train': 1, 'test': 1}
  assert [(reject.id, reject.reason) for reject in choice.rejects] == [
      ('b', rows.Reason.NEAR_DUPLICATE)]
  assert len(choice.near) == 2  # both pairs are listed


def test_what_has_several_twins_goes_once():
  choice = _choose(_outcome('a', 'train', 1), _outcome('b', 'test', 3), _outcome('c', 'test', 5),
                   _outcome('d', 'train', 6))
  assert _kept(choice) == ['b', 'c'] and sorted(r.id for r in choice.rejects) == ['a', 'd']


def test_pictures_elsewhere_stay_whatever_the_split():
  other = (likeness.Picture(id='x', hash=f'{(1 << 30) - 1:064x}'),)
  made = [_outcome('a', 'train', 30), _outcome('b', 'test', 31), _outcome('c', 'val', 200)]
  choice = _choose(*made, others=other)
  assert _kept(choice) == ['c']
  assert {reject.detail.split(' (')[0] for reject in choice.rejects} == {
      'almost the same picture as x in excluded'}
  reported = _choose(*made, near=duplicates.Near.REPORT, others=other)
  assert _kept(reported) == ['a', 'b', 'c'] and not reported.rejects
  assert duplicates.summary(reported.near)['between'] == {
      'test-excluded': 1, 'train-excluded': 1, 'train-test': 1}


def test_the_same_pixels_count_once():
  again = _outcome('a', 'test', 1)
  choice = _choose(_outcome('a', 'train', 1), again, near=duplicates.Near.REPORT)
  assert _kept(choice) == ['a'] and choice.rejects[0].reason is rows.Reason.DUPLICATE_PICTURE
