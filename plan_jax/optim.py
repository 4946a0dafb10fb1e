"""AdamW with linear warm-up and cosine decay."""

import jax
import optax

from plan_jax import config


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
  """AdamW on clipped gradients; what has one axis or none (norms, most biases) is not decayed.

  Biases of queries, keys and values have two axes (heads, width), so they are.

  Source: method.md, training defaults (after MGCA, NeurIPS'22).
  """
  return optax.chain(
      optax.clip_by_global_norm(settings.clip_norm),
      optax.adamw(
          learning_rate(settings, total_steps=total_steps),
          b1=settings.b1,
          b2=settings.b2,
          weight_decay=settings.weight_decay,
          mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
      ),
  )
