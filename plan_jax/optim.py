"""AdamW with linear warm-up and cosine decay; each tower may have a pace of its own."""

from collections.abc import Mapping
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from plan_jax import config

_RESIDUAL_BLOCK = re.compile(r'stage_(\d+)/block_(\d+)/')
_STACKED_BLOCKS = 'stack/blocks/'


def learning_rate(settings: config.Optim, *, total_steps: int) -> optax.Schedule:
  """Linear from 0 to `lr` over the warm-up share, then cosine to `end_lr`."""
  warmup = round(settings.warmup * total_steps)
  return optax.warmup_cosine_decay_schedule(
      init_value=0.0 if warmup else settings.lr,
      peak_value=settings.lr,
      warmup_steps=warmup,
      decay_steps=max(total_steps, warmup + 1),
      end_value=settings.end_lr,
  )


def make_optimizer(settings: config.Optim, *, total_steps: int) -> optax.GradientTransformation:
  """AdamW on clipped gradients; norms, biases and single vectors are not decayed.

  A frozen tower gets no update, no weight decay, and no moments; its gradients do not count
  in the clipping. What `settings.image` and `settings.text` say of the pace scales the whole
  update of a tower, weight decay included.

  Source: MGCA (Wang et al., NeurIPS 2022) for the defaults; no decay of norms and biases as in
  BERT (Devlin et al., NAACL 2019).
  """
  optimizer = optax.chain(
      optax.clip_by_global_norm(settings.clip_norm),
      optax.adamw(
          learning_rate(settings, total_steps=total_steps),
          b1=settings.b1,
          b2=settings.b2,
          weight_decay=settings.weight_decay,
          mask=lambda params: jax.tree_util.tree_map_with_path(_is_decayed, params),
      ),
  )
  towers = {'image_tower': settings.image, 'text_tower': settings.text}
  frozen = frozen_towers(settings)
  paces = {name: tower for name, tower in towers.items()
           if name not in frozen and tower != config.TowerOptim()}
  if paces:
    optimizer = optax.chain(optimizer, _scale_towers(
        paces, common_warmup=settings.warmup, total_steps=total_steps))
  if frozen:
    optimizer = optax.multi_transform(
        {'moves': optimizer, 'stays': optax.set_to_zero()},
        lambda params: {name: 'stays' if name in frozen else 'moves' for name in params})
  return optimizer


def frozen_towers(settings: config.Optim) -> frozenset[str]:
  """The names, among the parameters, of the towers that stay as they are."""
  return frozenset(f'{name}_tower' for name in ('image', 'text') if getattr(settings, name).freeze)


def layer_scales(tower: Mapping[str, Any], *, decay: float) -> Any:
  """The share of its tower's rate that each array has: `decay` ** (layers above it).

  Of n blocks the last has `decay`, the first `decay` ** n, what lies before them one power
  more; a ViT's last norm has 1, as the heads. Blocks of a ResNet are residual blocks.

  Args:
    tower: parameters (or shapes) of one tower.
    decay: in (0, 1].

  Returns:
    fp32 scalars like `tower`; for stacked blocks vectors along the first axis, [n 1 ...].

  Source: ELECTRA (Clark et al., ICLR 2020); numbering as in BEiT (Bao et al., ICLR 2022).
  """
  named = {_name(path): x for path, x in jax.tree_util.tree_leaves_with_path(tower)}
  residual = sorted({_residual(name) for name in named} - {None})
  depth = len(residual) or next(
      x.shape[0] for name, x in named.items() if name.startswith(_STACKED_BLOCKS))
  is_vit = 'patch_embedding' in tower  # its `norm` is the last layer, a BERT's the first

  def scale(path, x):
    name = _name(path)
    if name.startswith(_STACKED_BLOCKS):
      above = np.arange(depth, 0, -1).reshape(-1, *[1] * (x.ndim - 1))
    elif residual and _residual(name):
      above = depth - residual.index(_residual(name))
    else:
      above = 0 if is_vit and name.startswith('norm/') else depth + 1
    return np.float32(decay) ** np.asarray(above, np.float32)

  return jax.tree_util.tree_map_with_path(scale, tower)


def _scale_towers(
    paces: Mapping[str, config.TowerOptim], *, common_warmup: float, total_steps: int,
) -> optax.GradientTransformation:
  """Scales the updates of these towers; the rest stays as it is."""
  first = round(common_warmup * total_steps)

  def init(params):
    del params
    return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

  def update(updates, state, params=None):
    del params
    updates = dict(updates)
    for name, pace in paces.items():
      now, own = pace.lr_scale, round(pace.warmup * total_steps)
      if own > first:  # what the common warm-up, step / first, lacks to be step / own
        now *= jnp.minimum(jnp.maximum(state.count, first) / own, 1.0)
      updates[name] = jax.tree.map(
          lambda x, scale, now=now: x * (now * scale), updates[name],
          layer_scales(updates[name], decay=pace.layer_decay))
    return updates, optax.ScaleByScheduleState(count=optax.safe_increment(state.count))

  return optax.GradientTransformation(init, update)


def _is_decayed(path, x) -> bool:
  # By name as well: in stacked blocks vectors have an axis more, and biases of attention two.
  return x.ndim > 1 and _name(path).rpartition('/')[2] not in ('bias', 'scale')


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator='/')


def _residual(name: str) -> tuple[int, int] | None:
  found = _RESIDUAL_BLOCK.match(name)
  return (int(found[1]), int(found[2])) if found else None
