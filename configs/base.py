"""All settings at their defaults: what the full-size runs share.

Each setting is described where it is defined, in plan_jax/config.py.
"""

import ml_collections

from plan_jax import config


def get_config() -> ml_collections.ConfigDict:
  """The defaults."""
  return config.defaults()
