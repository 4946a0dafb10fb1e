"""The training loop of the heads: AdamW, best parameters on the validation split.

All randomness comes from the seed: the same arrays give the same parameters, bit for
bit, on the same machine.
"""

import dataclasses
import functools
import math
import sys
from typing import Any, Callable, Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np
import optax
import tqdm

# (head, parameters, constants, batch) -> (sum of losses, what to divide it by).
Loss = Callable[[Any, Any, Any, Any], tuple[Float[jax.Array, ''], Float[jax.Array, '']]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """Of the training of a head.

  Counted in steps, so that a small share of the labels gets as many as all of them. The
  learning rate rises over the first tenth of the steps and falls by a cosine to 0. The
  validation loss is taken at `checks` equal intervals; training ends after `patience`
  checks without a smaller one, and the parameters with the smallest are kept.
  """

  steps: int = 800
  checks: int = 16
  patience: int = 4
  batch_size: int = 16
  lr: float = 2e-3
  weight_decay: float = 1e-4
  seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
  """Parameters of the best check, its step, and the validation loss at each check."""

  params: Any
  step: int
  val_losses: tuple[float, ...]


def fit(
    loss: Loss, head: Any, params: Any, *, constants: Any, train: Any, val: Any,
    settings: Settings, label: str = '',
) -> Fitted:
  """Trains `params` of `head`.

  Args:
    loss: a function of a module, so that equal heads share one compilation.
    head: hashable, such as a Flax module.
    params: to start from.
    constants: pytree that the loss is given with each batch, not trained.
    train: pytree of NumPy arrays, images along the first axis.
    val: the same for the validation split.
    settings: of the training.
    label: shows progress under this name.

  Raises:
    ValueError: no images in a split, or no finite validation loss.
  """
  count, val_count = (len(jax.tree.leaves(tree)[0]) for tree in (train, val))
  if not count or not val_count:
    raise ValueError(
        f'{count} training and {val_count} validation images: a head needs some of both, the '
        'latter to choose the best step')
  state = _optimiser(settings).init(params)
  compiled = dataclasses.replace(settings, seed=0)  # one compilation for all seeds
  rows = _row_batches(count, size=min(settings.batch_size, count), seed=settings.seed)
  every = max(1, settings.steps // settings.checks)
  best, best_step, lowest, val_losses = params, 0, math.inf, []
  with tqdm.tqdm(total=settings.steps, desc=label, disable=not label, file=sys.stdout,
                 mininterval=0.5 if sys.stdout.isatty() else 5) as bar:
    for step in range(1, settings.steps + 1):
      batch = _rows(train, next(rows))
      params, state = _step(
          params, state, constants, batch, loss=loss, head=head, settings=compiled)
      bar.update()
      if step % every:
        continue
      val_losses.append(
          _mean_loss(loss, head, params, constants, val, size=settings.batch_size))
      if val_losses[-1] < lowest:
        best, best_step, lowest = params, step, val_losses[-1]
      bar.set_postfix(val_loss=f'{val_losses[-1]:.4f}', best_step=best_step, refresh=False)
      if step - best_step >= settings.patience * every:
        break
  if not best_step:
    raise ValueError(
        f'no finite validation loss in {len(val_losses)} checks; a learning rate below '
        f'{settings.lr:g} may help')
  return Fitted(params=jax.device_get(best), step=best_step, val_losses=tuple(val_losses))


def initial(head: Any, stages: Any, *, seed: int) -> Any:
  """Parameters to start from, of a Flax module that takes maps like `stages`."""
  blank = tuple(jnp.zeros((1, *stage.shape[1:])) for stage in stages)
  return _init(jax.random.key(seed), blank, head=head)['params']


def _row_batches(count: int, *, size: int, seed: int) -> Iterator[Int[np.ndarray, '{size}']]:
  """Endless batches; each image once before any comes again."""
  rng, order = np.random.default_rng(seed), np.zeros(0, int)
  while True:
    if len(order) < size:
      order = np.concatenate([order, rng.permutation(count)])
    yield order[:size]
    order = order[size:]


def _optimiser(settings: Settings) -> optax.GradientTransformation:
  rate = optax.warmup_cosine_decay_schedule(
      0.0, settings.lr, warmup_steps=max(1, settings.steps // 10),
      decay_steps=max(2, settings.steps))
  return optax.chain(
      optax.clip_by_global_norm(10.0),
      optax.adamw(rate, weight_decay=settings.weight_decay))


@functools.partial(jax.jit, static_argnames='head')
def _init(key, stages, *, head):
  return head.init(key, stages)


@functools.partial(
    jax.jit, static_argnames=('loss', 'head', 'settings'), donate_argnames='state')
def _step(params, state, constants, batch, *, loss, head, settings):
  def mean_loss(params):
    total, weight = loss(head, params, constants, batch)
    return total / jnp.maximum(weight, 1)

  updates, state = _optimiser(settings).update(jax.grad(mean_loss)(params), state, params)
  return optax.apply_updates(params, updates), state


@functools.partial(jax.jit, static_argnames=('loss', 'head'))
def _loss(params, constants, batch, *, loss, head):
  return loss(head, params, constants, batch)


def _mean_loss(
    loss: Loss, head: Any, params: Any, constants: Any, arrays: Any, *, size: int) -> float:
  """Over all images, each batch with its weight."""
  count = len(jax.tree.leaves(arrays)[0])
  parts = [
      _loss(params, constants, _rows(arrays, slice(start, start + size)), loss=loss, head=head)
      for start in range(0, count, size)]
  total, weight = np.sum(jax.device_get(parts), axis=0)
  return float(total / max(weight, 1))


def _rows(arrays: Any, rows: Any) -> Any:
  return jax.tree.map(lambda x: x[rows], arrays)
