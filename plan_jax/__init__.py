"""Pre-training of image-report models in JAX: PLAN (reconstructed).

`load` is all that using a checkpoint needs; importing this package alone imports
neither JAX nor anything else that is heavy.
"""

import os
import sys
import typing

if typing.TYPE_CHECKING:
  from plan_jax import inference


def load(path: str | os.PathLike[str], *, platform: str = 'cpu') -> 'inference.Model':
  """The model of a checkpoint, ready for images and texts.

  Args:
    path: a run's workdir, its `checkpoints` directory, or one step in it.
    platform: 'cpu', 'gpu' or 'tpu'. If JAX was not imported before, no other
      platform is started.

  Raises:
    errors.UserError: no checkpoint there, or no such platform.
  """
  if 'jax' not in sys.modules:
    os.environ.setdefault('JAX_PLATFORMS', 'cuda,cpu' if platform == 'gpu' else platform)
  from plan_jax import inference  # pylint: disable=g-import-not-at-top
  return inference.load(path, platform=platform)
