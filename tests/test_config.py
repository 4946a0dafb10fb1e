"""Settings resolve, validate, and say what is wrong."""

import pytest

from plan_jax import config


def test_defaults_resolve_to_themselves():
  assert config.resolve(config.defaults()) == config.Config()


def test_to_dict_and_resolve_are_inverse():
  changed = config.resolve({'optim': {'lr': 1}, 'stages': {'focus': {'keep': 0.3}}})
  assert changed.optim.lr == 1.0 and isinstance(changed.optim.lr, float)
  assert changed.stages.focus.keep == 0.3 and changed.stages.focus.share == 0.5
  assert config.resolve(config.to_dict(changed)) == changed


@pytest.mark.parametrize('values, parts', [
    ({'optm': {}}, ['config.optm', 'did you mean config.optim']),
    ({'optim': {'lrr': 1.0}}, ['config.optim.lrr', 'did you mean config.optim.lr']),
    ({'optim': {'lr': 'fast'}}, ['config.optim.lr', "'fast'", 'float']),
    ({'train': {'steps': 2.5}}, ['config.train.steps', '2.5', 'int']),
    ({'objective': {'term_filter': 1}}, ['config.objective.term_filter', 'bool']),
    ({'model': {'image': 'resnet5'}}, ['config.model.image', "'resnet5'", "'resnet50'"]),
    ({'train': 3}, ['config.train', 'group']),
    ({'data': {'image_size': 100}}, ['config.data.image_size', '100', '32']),
    ({'stages': {'focus': {'share': 0.9}}}, ['shares sum to 1.4']),
    ({'stages': {'focus': {'keep': 0.0}}}, ['config.stages.focus.keep']),
    ({'objective': {'name': 'gloria', 'negatives': 'pair'}},
     ['config.objective.negatives = pair', "'device' or 'global'", "'convirt'"]),
    ({'objective': {'algorithm': 'fused', 'rounds': 2}},
     ['config.objective.algorithm = fused', 'rounds = 2', "'auto'"]),
])
def test_errors_name_key_value_and_fix(values, parts):
  with pytest.raises(config.ConfigError) as error:
    config.resolve(values)
  for part in parts:
    assert part in str(error.value)
