r"""The contrast of all words with all pixels of a batch: ours, plain JAX, and a PyTorch loop.

  python benchmarks/word_pixel.py

The loss is GLoRIA's local one, forward and backward, fp32, by
  ours    plan_jax.losses.cross_pair, as the training step calls it;
  naive   the formula in JAX with all pairs in memory at once, written down as it stands;
  oracle  our `reference`: likewise, but with Gram matrices where they save products;
  torch   a loop over reports, as in GLoRIA's published code, written from the formula: a
          report's own words only, matched with all images at once.
Memory is what the process holds at most, beyond inputs and program. `full` reports have
all T words, `ragged` ones 8 to T, evenly. Where an array of all pairs would not fit into
the machine, naive and oracle are compiled and not run; their memory is the compiler's figure.
The largest two sizes run once.
"""

import pathlib

import numpy as np

import measure

_WORDS = 97
_ALGORITHMS = ('ours', 'naive', 'oracle', 'torch')
_TEMPERATURES = (4.0, 5.0, 10.0)  # of GLoRIA: attention, words, scores


def cases(quick: bool) -> list[measure.Case]:
  sizes = [(8, 49, 32, 'ragged')] if quick else [
      *((batch, 196, 128, 'full') for batch in (32, 64, 128, 256, 512)),
      (128, 196, 128, 'ragged'), (64, 196, 768, 'full'), (128, 196, 768, 'full')]
  return [
      {'algorithm': algorithm, 'batch': batch, 'pixels': pixels, 'dim': dim, 'reports': reports,
       **({'once': True} if batch * dim >= 2**16 else {})}
      for batch, pixels, dim, reports in sizes for algorithm in _ALGORITHMS]


def run(case: measure.Case) -> measure.Result:
  rng = np.random.default_rng(0)
  batch, pixels, dim = case['batch'], case['pixels'], case['dim']
  image = rng.normal(size=(batch, pixels, dim)).astype(np.float32) * np.float32(3 / dim**0.5)
  text = rng.normal(size=(batch, _WORDS, dim)).astype(np.float32)
  lengths = np.full(batch, _WORDS)
  if case['reports'] == 'ragged':
    lengths = rng.permutation(np.linspace(8, _WORDS, batch).astype(int))
  if case['algorithm'] == 'torch':
    return _torch(text, image, lengths)
  return _jax(text, image, lengths, algorithm=case['algorithm'])


def _jax(text, image, lengths, *, algorithm: str) -> measure.Result:
  import jax

  from plan_jax import config
  from plan_jax import mesh as mesh_lib
  from plan_jax.losses import cross_pair
  from plan_jax.objectives import gloria

  is_word = np.arange(_WORDS) < lengths[:, None]
  is_pixel = np.ones(image.shape[:2], bool)
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  chosen = config.Algorithm.AUTO if algorithm == 'ours' else config.Algorithm.REFERENCE

  def loss(text, image, is_word, is_pixel):
    if algorithm == 'naive':
      return _naive_loss(text, image, is_word)
    return 2 * cross_pair.batch_loss(
        text, image, is_word=is_word, is_pixel=is_pixel, look=gloria.LOOK, is_global=True,
        mib=config.Objective().block_mib, mesh=mesh, algorithm=chosen)

  inputs = jax.device_put((text, image, is_word, is_pixel))
  compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*inputs).compile()
  planned = compiled.memory_analysis().temp_size_in_bytes / 2**20
  if planned > 0.9 * measure.free_mib():
    return {'skipped': 'does not fit', 'mib': planned}
  return _measured(lambda: jax.block_until_ready(compiled(*inputs))[0].item())


def _naive_loss(text, image, is_word):
  import jax
  import jax.numpy as jnp
  import optax

  sharpness, over_words, scale = _TEMPERATURES
  similarity = jnp.einsum('jtd,ipd->ijtp', text, image)
  share = jax.nn.softmax(jnp.where(is_word[:, :, None], similarity, -jnp.inf), axis=2)
  attention = jax.nn.softmax(sharpness * share, axis=3)
  region = jnp.einsum('ijtp,ipd->ijtd', attention, image)
  cosine = optax.losses.cosine_similarity(text[None], region)
  score = jax.nn.logsumexp(jnp.where(is_word, over_words * cosine, -jnp.inf), axis=2)
  target = jnp.arange(len(text))
  both = (optax.losses.softmax_cross_entropy_with_integer_labels(scale * x, target)
          for x in (score, score.T))
  return sum(jnp.mean(x) for x in both)


def _torch(text, image, lengths) -> measure.Result:
  import torch
  from torch.nn import functional

  # Of each report, PyTorch keeps for the backward pass two arrays [images, pixels, words] (what
  # the softmaxes gave) and four [images, words, dim]: words, regions, and unit vectors of both.
  images, pixels, dim = image.shape
  needed = 4 * images * int(lengths.sum()) * (2 * pixels + 4 * dim) / 2**20
  if needed > 0.9 * measure.free_mib():
    return {'skipped': 'does not fit'}
  text = torch.tensor(text, requires_grad=True)
  image = torch.tensor(image, requires_grad=True)
  sharpness, over_words, scale = _TEMPERATURES

  def scores(report: int):
    words = text[report, :lengths[report]].expand(len(image), -1, -1)  # [b t d]
    similarity = image @ words.mT  # [b p t]
    share = functional.softmax(similarity, dim=-1)
    attention = functional.softmax(sharpness * share, dim=1)
    region = attention.mT @ image  # [b t d]
    cosine = functional.cosine_similarity(words, region, dim=-1)
    return torch.logsumexp(over_words * cosine, dim=-1)

  def step():
    text.grad = image.grad = None
    logits = scale * torch.stack([scores(report) for report in range(len(text))], dim=1)
    target = torch.arange(len(text))
    loss = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.mT, target)
    loss.backward()
    return loss.item()

  return _measured(step)


def _measured(step) -> measure.Result:
  before = measure.resident_mib()
  measure.reset_peak()
  loss = step()  # warms up
  mib = measure.peak_mib() - before
  return {'seconds': min(measure.timed(step, least=1, seconds=2.0)), 'mib': mib, 'loss': loss}


def show(found) -> str:
  others = ('torch', 'naive', 'oracle')
  lines = ['| ' + ' | '.join([
      'B', 'D', 'reports', 'ours, s', *(f'{name} / ours, time' for name in others),
      'ours, MiB', *(f'{name} / ours, memory' for name in others)]) + ' |', '|' + 11 * '---|']
  for of_size in zip(*(found[k::len(_ALGORITHMS)] for k in range(len(_ALGORITHMS))), strict=True):
    _require_same_loss(*of_size)
    of = {case['algorithm']: results for case, results in of_size}
    case, ours = of_size[0][0], of['ours']
    cells = [str(case['batch']), str(case['dim']), case['reports']]
    for key in ('seconds', 'mib'):
      cells += [measure.spread(ours, key), *(measure.ratio(of[name], ours, key) for name in others)]
    lines.append('| ' + ' | '.join(cells) + ' |')
  return '\n'.join(lines)


def _require_same_loss(*found) -> None:
  losses = [result['loss'] for _, results in found for result in results if 'loss' in result]
  if losses and max(losses) - min(losses) > 1e-4 * abs(losses[0]):
    raise AssertionError(f'{found[0][0]}: the losses differ: {sorted(losses)}')


def draw(found, path: pathlib.Path) -> None:
  from matplotlib import pyplot

  shown = {key: found[0][0][key] for key in ('pixels', 'dim', 'reports')}
  figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.6), layout='constrained')
  for axis, key, label in zip(axes, ('seconds', 'mib'), ('time, s', 'memory, MiB'), strict=True):
    for algorithm, marker in zip(_ALGORITHMS, 'osx^', strict=True):
      points = [
          (case['batch'], measure.median(results, key)) for case, results in found
          if case['algorithm'] == algorithm and case.items() >= shown.items()
          and measure.median(results, key)]
      if points:
        axis.loglog(*zip(*points, strict=True), marker=marker, label=algorithm, base=2)
    axis.set(xlabel='pairs in the batch', ylabel=label)
    axis.grid(alpha=0.3)
  axes[0].legend()
  figure.suptitle('Word-pixel loss, forward and backward; '
                  f'T = {_WORDS}, P = {shown["pixels"]}, D = {shown["dim"]}')
  figure.savefig(path, dpi=120)


if __name__ == '__main__':
  measure.main(__file__, __doc__, cases=cases, measure=run, show=show, draw=draw,
               needs=('torch',))
