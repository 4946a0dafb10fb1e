"""Layers that the towers share: masks, norms, attention, transformer block, heads.

Parameters are fp32. Norms, softmax and masked means are computed in fp32 whatever
the compute `dtype`.
"""

import enum
import functools
from typing import Any, Callable

from flax import struct
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from plan_jax import config
from plan_jax import in_parts
from plan_jax import mesh

Array = jax.Array
Dtype = Any


class NormOrder(enum.Enum):
  """Where a transformer block normalises: ViT before, BERT after each half."""

  BEFORE = 'before'
  AFTER = 'after'


def cell_mask(
    extent: Int[Array, 'b 4'], *, grid: tuple[int, int], stride: int
) -> Bool[Array, 'b h w']:
  """Which cells of a grid hold image: True if any pixel of the cell is real.

  A cell covers `stride` x `stride` pixels; cell (0, 0) starts at pixel (0, 0).
  "Any pixel" is the rule under which right and bottom padding changes nothing: an
  image of n pixels alone has exactly ceil(n / stride) cells.

  Args:
    extent: (y0, x0, y1, x1) of the real pixels, end exclusive. An empty extent
      has no real cell.
    grid: rows and columns of cells.
    stride: side of a cell in pixels.
  """
  y0, x0, y1, x1 = jnp.moveaxis(extent[:, None, :], -1, 0)  # [b 1] each

  def touches(count: int, start: Array, end: Array) -> Array:
    first = jnp.arange(count) * stride
    return (first < end) & (first + stride > start) & (end > start)

  rows, columns = touches(grid[0], y0, y1), touches(grid[1], x0, x1)
  return rows[:, :, None] & columns[:, None, :]


def l2_normalise(x: Float[Array, '... d']) -> Float[Array, '... d']:
  """Unit vectors along the last axis, fp32; a zero vector stays zero, gradient 0."""
  x = x.astype(jnp.float32)
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  tiny = 1e-12
  scale = jnp.where(square > tiny, jax.lax.rsqrt(jnp.maximum(square, tiny)), 0.0)
  return x * scale


def length(x: Float[Array, '... d']) -> Float[Array, '...']:
  """Euclidean length along the last axis, fp32; gradient 0 for a zero vector."""
  square = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1)
  is_zero = square < 1e-12
  return jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, square)))


def masked_mean(
    x: Float[Array, 'b h w c'], is_cell: Bool[Array, 'b h w']
) -> Float[Array, 'b c']:
  """Mean over the real cells, fp32; zero for an image without any."""
  total = jnp.sum(x.astype(jnp.float32), axis=(1, 2), where=is_cell[..., None])
  return total / jnp.maximum(jnp.sum(is_cell, axis=(1, 2)), 1)[:, None]


def layer_norm(*, epsilon: float, dtype: Dtype, name: str) -> nn.LayerNorm:
  """LayerNorm with fp32 statistics in the two-pass form that PyTorch uses."""
  return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


@struct.dataclass
class Moments:
  """Of the real items of a batch: how many, their sum and that of their squares, fp32."""

  count: Float[Array, '']
  total: Float[Array, 'c']
  total_square: Float[Array, 'c']


def moments(x: Float[Array, 'b *n c'], is_real: Bool[Array, 'b *n']) -> Moments:
  """Sums, not products with the mask: TPUs round the operands of those to bf16."""
  x, axes = x.astype(jnp.float32), tuple(range(x.ndim - 1))
  return Moments(
      count=jnp.sum(is_real, dtype=jnp.float32),
      total=jnp.sum(x, axis=axes, where=is_real[..., None]),
      total_square=jnp.sum(x * x, axis=axes, where=is_real[..., None]))


class BatchNorm(nn.Module):
  """Batch normalisation whose statistics count real items (cells, words) only.

  Over a batch without one real item the running statistics are used and stay as
  they are. The running variance is the biased one. Under jit over a sharded batch
  the statistics are those of the global batch.

  Attributes:
    dtype: of the output.
    momentum: share of the old running value that an update keeps.
    epsilon: added to the variance.
  """

  dtype: Dtype
  momentum: float = 0.9
  epsilon: float = 1e-5

  def __call__(
      self, x: Float[Array, 'b *n c'], is_real: Bool[Array, 'b *n'], *, train: bool
  ) -> Float[Array, 'b *n c']:
    batch = moments(x, is_real) if train else None
    return self.fitted(x.shape[-1], batch)(x, batch)

  @nn.compact
  def fitted(
      self, width: int, batch: Moments | None
  ) -> Callable[[Array, Moments | None], Array]:
    """Normalises by the moments of a batch, or by the running ones, which follow `batch` here."""
    scale = self.param('scale', nn.initializers.ones, (width,))
    bias = self.param('bias', nn.initializers.zeros, (width,))
    running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (width,))
    running_var = self.variable('batch_stats', 'var', jnp.ones, (width,))
    running = running_mean.value, running_var.value
    follows = batch is not None and not self.is_initializing()

    def mean_and_var(batch):
      if not follows:
        return running
      mean = batch.total / jnp.maximum(batch.count, 1)
      var = batch.total_square / jnp.maximum(batch.count, 1) - mean**2
      return (jnp.where(batch.count > 0, mean, running[0]),
              jnp.where(batch.count > 0, jnp.maximum(var, 0.0), running[1]))

    def normalise(x, batch):
      mean, var = mean_and_var(batch)
      factor = scale * jax.lax.rsqrt(var + self.epsilon)
      return ((x.astype(jnp.float32) - mean) * factor + bias).astype(self.dtype)

    if follows:
      mean, var = mean_and_var(batch)
      running_mean.value += (1 - self.momentum) * (mean - running[0])
      running_var.value += (1 - self.momentum) * (var - running[1])
    return normalise


class Head(nn.Module):
  """Two-layer projection into the joint space, fp32, before normalisation.

  The hidden layer is as wide as the input. BatchNorm inside centres the features
  over the batch: from random weights all images, and all reports, look alike.

  Attributes:
    joint_dim: d.
    dtype: of the layers.
    parts: in training, so many parts of the batch one after the other (`in_parts`), once for
      the statistics of all and once more.

  Source: MGCA (Wang et al., NeurIPS 2022), projection heads.
  """

  joint_dim: int
  dtype: Dtype
  parts: int = 1

  @nn.compact
  def __call__(
      self, x: Float[Array, 'b *n c'], is_real: Bool[Array, 'b *n'], *, train: bool
  ) -> Float[Array, 'b *n d']:
    """Items that are not `is_real` come out as zero vectors."""
    width = x.shape[-1]
    dense_1 = nn.Dense(width, use_bias=False, dtype=self.dtype, name='dense_1')
    norm = BatchNorm(self.dtype, name='norm')
    dense_2 = nn.Dense(self.joint_dim, dtype=self.dtype, name='dense_2')

    def project(x, is_real, normalise):
      x = dense_2(nn.relu(normalise(dense_1(x)))).astype(jnp.float32)
      return jnp.where(is_real[..., None], x, 0.0)

    if not train or self.parts == 1 or self.is_initializing():
      return project(x, is_real, functools.partial(norm, is_real=is_real, train=train))
    of_parts = in_parts.run(
        lambda _, x, is_real: moments(dense_1(x), is_real), x, is_real, parts=self.parts)
    batch = jax.lax.stop_gradient(jax.tree.map(lambda x: jnp.sum(x, axis=0), of_parts))
    normalise = norm.fitted(width, batch)
    return in_parts.joined(in_parts.run_with_sums(
        lambda batch, x, is_real: project(x, is_real, lambda x: normalise(x, batch)), x, is_real,
        sums=lambda x, is_real: moments(dense_1(x), is_real), total=batch, parts=self.parts))


def transformer_dense(features: Any, *, dtype: Dtype, name: str, axis: Any = -1) -> nn.Module:
  """A linear layer with the initial weights of BERT and ViT (std 0.02)."""
  return nn.DenseGeneral(
      features, axis=axis, dtype=dtype, name=name,
      kernel_init=nn.initializers.truncated_normal(0.02))


class Attention(nn.Module):
  """Multi-head self-attention; also returns the first token's attention.

  `first_row` [b n s] is what the first token ([CLS]) attends to in each of the n
  heads: fp32, before dropout, rows sum to 1 over the real tokens.
  """

  heads: int
  dropout: float
  dtype: Dtype

  @nn.compact
  def __call__(
      self, x: Float[Array, 'b s c'], is_token: Bool[Array, 'b s'], *, train: bool
  ) -> tuple[Float[Array, 'b s c'], Float[Array, 'b n s']]:
    width = x.shape[-1]
    shape = (self.heads, width // self.heads)
    query = transformer_dense(shape, dtype=self.dtype, name='query')(x)
    key = transformer_dense(shape, dtype=self.dtype, name='key')(x)
    value = transformer_dense(shape, dtype=self.dtype, name='value')(x)
    # q: query tokens, s: key tokens, n: heads, e: width of a head.
    logits = jnp.einsum('bqne,bsne->bnqs', query * shape[1]**-0.5, key,
                        preferred_element_type=jnp.float32)
    # Finite, so that a row without any real token is uniform and not NaN.
    logits = jnp.where(is_token[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
    weights = nn.softmax(logits, axis=-1)
    first_row = weights[:, :, 0]
    weights = nn.Dropout(self.dropout, deterministic=not train)(weights.astype(self.dtype))
    mixed = jnp.einsum('bnqs,bsne->bqne', weights, value)
    out = transformer_dense(width, axis=(-2, -1), dtype=self.dtype, name='out')(mixed)
    return out, first_row


class Mlp(nn.Module):
  """The feed-forward half of a transformer block; exact (erf) GELU."""

  hidden: int
  dtype: Dtype

  @nn.compact
  def __call__(self, x: Float[Array, 'b s c']) -> Float[Array, 'b s c']:
    width = x.shape[-1]
    x = transformer_dense(self.hidden, dtype=self.dtype, name='dense_1')(x)
    x = nn.gelu(x, approximate=False)
    return transformer_dense(width, dtype=self.dtype, name='dense_2')(x)


class Block(nn.Module):
  """One transformer block: attention and MLP, each with residual and LayerNorm.

  Returns the tokens and the first token's attention (see `Attention`).
  """

  heads: int
  order: NormOrder
  dropout: float
  dtype: Dtype
  epsilon: float = 1e-12

  @nn.compact
  def __call__(
      self, x: Float[Array, 'b s c'], is_token: Bool[Array, 'b s'], *, train: bool
  ) -> tuple[Float[Array, 'b s c'], Float[Array, 'b n s']]:
    norm_1 = layer_norm(epsilon=self.epsilon, dtype=self.dtype, name='norm_1')
    norm_2 = layer_norm(epsilon=self.epsilon, dtype=self.dtype, name='norm_2')
    attention = Attention(self.heads, self.dropout, self.dtype, name='attention')
    mlp = Mlp(4 * x.shape[-1], self.dtype, name='mlp')
    dropout = nn.Dropout(self.dropout, deterministic=not train)
    if self.order is NormOrder.BEFORE:
      change, first_row = attention(norm_1(x), is_token, train=train)
      x = x + dropout(change)
      x = x + dropout(mlp(norm_2(x)))
    else:
      change, first_row = attention(x, is_token, train=train)
      x = norm_1(x + dropout(change))
      x = norm_2(x + dropout(mlp(x)))
    return x, first_row


class Stack(nn.Module):
  """Transformer blocks, one after the other: one program for all, parameters stacked.

  Compiling takes as long as for one block. Returns the tokens and what the first token
  attends to in the last block.
  """

  depth: int
  heads: int
  order: NormOrder
  dropout: float
  remat: config.Remat
  dtype: Dtype
  epsilon: float = 1e-12

  @nn.compact
  def __call__(
      self, x: Float[Array, 'b s c'], is_token: Bool[Array, 'b s'], *, train: bool
  ) -> tuple[Float[Array, 'b s c'], Float[Array, 'b n s']]:
    def step(block, x, _):
      x, first_row = block(mesh.keep_split(x), is_token, train=train)
      return mesh.keep_split(x), first_row

    block = Block(
        self.heads, self.order, self.dropout, self.dtype, self.epsilon, name='blocks')
    x, first_rows = nn.scan(
        rematerialised(step, self.remat, in_loop=True), variable_axes={'params': 0},
        split_rngs={'params': True, 'dropout': True}, length=self.depth)(block, x, None)
    return x, first_rows[-1]


def rematerialised(function: Any, remat: config.Remat, *, in_loop: bool) -> Any:
  """`function(module, ...)`, what its backward pass keeps chosen by name.

  Args:
    function: of a module and arrays; its inputs are kept whatever the choice.
    remat: the choice.
    in_loop: the function is the body of a loop. Outside of one XLA would find what is computed
      again equal to what was computed before, and keep that, unless told not to.
  """
  match remat:
    case config.Remat.NONE:
      return function
    case config.Remat.DOTS:
      return nn.remat(function, policy=_is_product, prevent_cse=not in_loop)
    case config.Remat.BLOCKS:
      return nn.remat(function, prevent_cse=not in_loop)


def _is_product(primitive: Any, *args: Any, **params: Any) -> bool:
  """A rematerialisation policy: keeps products of activations with weights, convolutions included."""
  return primitive is jax.lax.conv_general_dilated_p or (
      jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *args, **params))
