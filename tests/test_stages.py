"""The schedule: borders that sum exactly, and each stage's values."""

import dataclasses

import numpy as np
import pytest

from plan_jax import config
from plan_jax import stages


@pytest.mark.parametrize('total', [3, 7, 10, 101, 50_000])
def test_every_step_has_its_stage_in_proportion(total):
  schedule = stages.schedule(config.Stages(), total_steps=total)
  names = [schedule.name(step) for step in range(total)]
  assert list(dict.fromkeys(names)) == ['discover', 'refine', 'focus']
  for name, share in {'discover': 0.2, 'refine': 0.3, 'focus': 0.5}.items():
    assert abs(names.count(name) - share * total) <= 1
    assert schedule.ends[name] == total - names[::-1].index(name)


def test_values_of_the_published_table():
  schedule = stages.schedule(config.Stages(), total_steps=100)
  discover, refine, focus = (schedule.values(step) for step in (0, 49, 50))
  for values in (discover, refine, focus):
    for field in dataclasses.fields(values):
      value = getattr(values, field.name)
      assert isinstance(value, np.float32) and value.shape == (), field.name
  assert (discover.sigma_per_cell, discover.sigma_fixed, discover.sigma_percentile) == (1, 0, 0)
  assert (refine.sigma_per_cell, refine.sigma_fixed, refine.sigma_percentile) == (0, .5, 0)
  assert (focus.sigma_per_cell, focus.sigma_fixed) == (0, 0)
  assert focus.sigma_percentile == np.float32(0.85)
  assert [float(v.keep) for v in (discover, refine, focus)] == pytest.approx([1, .7, .4])
  assert [float(v.gamma) for v in (refine, focus)] == [1, 2]
  assert [float(v.reliability) for v in (discover, refine, focus)] == [0, 1, 1]
  assert float(focus.margin) == pytest.approx(0.02)
  assert [float(v.pixel_word_weight) for v in (discover, refine, focus)] == [0, 1, 1]
  assert [float(v.short_text_prob) for v in (discover, refine, focus)] == [0, 0, .5]


def test_refine_weight_is_linear_inside_its_stage():
  schedule = stages.schedule(config.Stages(), total_steps=100)
  weights = np.array([schedule.values(step).refine_weight for step in range(100)])
  assert not weights[:20].any() and (weights[50:] == 1).all()
  np.testing.assert_allclose(weights[20:50], np.linspace(0, 1, 30), atol=1e-6)


def test_steps_past_the_end_keep_the_last_values():
  schedule = stages.schedule(config.Stages(), total_steps=10)
  assert schedule.name(10) == 'focus'
  assert schedule.values(99) == schedule.values(9)


def test_a_stage_with_share_0_is_left_out():
  off = dataclasses.replace(config.Stages().refine, share=0.0)
  last = dataclasses.replace(config.Stages().focus, share=0.8)
  schedule = stages.schedule(config.Stages(refine=off, focus=last), total_steps=10)
  assert schedule.ends == {'discover': 2, 'focus': 10}


def test_a_single_step_gets_a_stage():
  schedule = stages.schedule(config.Stages(), total_steps=1)
  assert len(schedule.ends) == 1 and set(schedule.ends.values()) == {1}


def test_errors_name_the_key():
  too_much = dataclasses.replace(config.Stages().focus, share=0.6)
  with pytest.raises(ValueError, match='sum to 1.1.*stages.focus.share=0.6'):
    stages.schedule(config.Stages(focus=too_much), total_steps=10)
  negative = dataclasses.replace(config.Stages().focus, share=-0.5)
  with pytest.raises(ValueError, match='stages.focus.share=-0.5'):
    stages.schedule(config.Stages(focus=negative), total_steps=10)
  with pytest.raises(ValueError, match='total_steps=0'):
    stages.schedule(config.Stages(), total_steps=0)
  with pytest.raises(ValueError, match='step=-1'):
    stages.schedule(config.Stages(), total_steps=10).values(-1)
