"""PLAN's objective at its smallest, for runs of several processes."""

import ml_collections

from plan_jax import config as config_lib


def get_config() -> ml_collections.ConfigDict:
  """Validated at the ends of the stages only, steps 5, 9 and 12; saved at every second step too."""
  config = config_lib.defaults()
  config.data.image_size = 32
  config.data.max_pieces = 16
  config.data.max_words = 8
  config.data.threads = 1
  config.model.image = 'resnet_tiny'
  config.model.text = 'bert_tiny'
  config.model.joint_dim = 16
  config.objective.teacher = 'self'
  config.stages.discover.share = 5 / 12
  config.stages.refine.share = 4 / 12
  config.stages.focus.share = 3 / 12
  # So small that what rounding does to one step does not grow over the next ones.
  config.optim.lr = 1e-5
  config.train.steps = 12
  config.train.batch_size = 8
  config.train.log_every = 1
  config.train.eval_every = 1000
  config.train.eval_pairs = 24
  config.train.checkpoint_every = 2
  return config
