"""A trained model for use: vectors of images and texts, and grounding maps."""

import collections
from concurrent import futures
import copy
import functools
import itertools
import os
import sys
from typing import Any, Callable, Iterable, Iterator, Sequence

import jax
from jaxtyping import Float, UInt8
import numpy as np
import tqdm

from plan_jax import checkpoint
from plan_jax import config as config_lib
from plan_jax import errors
from plan_jax import processes
from plan_jax import shapes
from plan_jax import stages
from plan_jax import step as step_lib
from plan_jax.data import augment
from plan_jax.data import decode
from plan_jax.data import tokenize
from plan_jax.evals import grounding
from plan_jax.models import plan as plan_model
from plan_jax.models import resnet
from plan_jax.objectives import matching

Image = str | os.PathLike[str] | bytes | np.ndarray


class InferenceError(errors.UserError):
  """An image, a text or a platform that cannot be used; the message names it."""


class Model:
  """A model with its vocabulary and weights.

  An image is a path, an encoded JPEG, PNG or DICOM, or a uint8 array [h w] of grey
  values. Vectors are unit length in the joint space: their dot products are
  cosines. Each compiled shape serves all models of the same settings.

  Args:
    config: of the run that trained it.
    vocabulary: word pieces in id order.
    variables: `params` and, for a ResNet, `batch_stats`.
    batch_size: images or texts at a time; a single one has a shape of its own.
    team: the processes that share the work of the towers and of `match`: batches are
      dealt out in turn, so that each result is to the bit that of one process. All
      call the same methods in the same order, and all get all results.
  """

  def __init__(
      self, config: config_lib.Config, vocabulary: Sequence[str], variables: Any, *,
      batch_size: int = 16, team: processes.Team = processes.Team(),
  ):
    self.config = config
    self.vocabulary = tuple(vocabulary)
    self.image_size = config.data.image_size
    self.grid = plan_model.grid_shape(config.model, self.image_size)
    self.temperature = float(
        np.exp(variables['params']['log_temperature']) if config.model.learn_temperature
        else config.model.temperature)  # tau_g of (2)
    self.matches_words = matching.matches_across_pairs(config.objective)  # see `match`
    self._last_stage = stages.schedule(
        config.stages, total_steps=config.train.steps).values(config.train.steps - 1)
    self._variables = variables
    self._batch_size, self._team = batch_size, team
    self._tower = step_lib.build_model(config, vocab_size=len(self.vocabulary))
    self._tokenizer = tokenize.Tokenizer(
        self.vocabulary, max_pieces=config.data.max_pieces, max_words=config.data.max_words)

  def alone(self) -> 'Model':
    """The same model, for what one process of the team does without the others."""
    model = copy.copy(self)
    model._team = processes.Team()
    return model

  def embed_images(self, images: Sequence[Image]) -> Float[np.ndarray, 'n d']:
    """Unit vectors of images.

    Raises:
      InferenceError: an image that cannot be read; the message says which.
    """
    _require_sequence(images, 'images')
    return self.encode_images(images, count=len(images)).pooled

  def embed_texts(self, texts: Sequence[str]) -> Float[np.ndarray, 'n d']:
    """Unit vectors of reports or phrases.

    Raises:
      InferenceError: an empty text; the message says which.
    """
    return self.encode_texts(texts).pooled

  def similarity(
      self, images: Sequence[Image], texts: Sequence[str],
  ) -> Float[np.ndarray, 'n m']:
    """Cosine of every image with every text, -1..1. Source: method (18)."""
    return self.embed_images(images) @ self.embed_texts(texts).T

  def ground(
      self, image: Image, phrase: str, *, kind: matching.MapKind | str = matching.MapKind.REGIONS,
      smoothing: float = grounding.SMOOTHING,
  ) -> Float[np.ndarray, 'h w']:
    """Where the phrase is in the image: larger is more likely.

    Args:
      image: one image.
      phrase: what to look for, such as 'left pleural effusion'.
      kind: 'regions' (weights of the words' regions), 'words' (their similarities, each
        word's from 0 to 1) or 'pooled' (cosine with the phrase's vector).
      smoothing: Gaussian sigma in grid cells; the evaluation's unless given.

    Returns:
      A map in the original image's frame. What the model's central crop leaves
      out has the map's minimum.
    """
    try:
      kind = matching.MapKind(kind)
    except ValueError:
      choices = ', '.join(repr(str(choice)) for choice in matching.MapKind)
      raise InferenceError(f'kind={kind!r}: must be one of {choices}') from None
    if not isinstance(phrase, str):
      raise InferenceError(f'phrase is {type(phrase).__name__}, not a text; give one str')
    pixels = read_image(image, name='image')
    texts = self.encode_texts([phrase], name='phrase')
    if kind is not matching.MapKind.POOLED and not texts.is_word.any():
      raise InferenceError(
          "the phrase holds no words, only punctuation; name a finding, or use kind='pooled'")
    grid_map = self.ground_pairs(self.encode_images([pixels], count=1), texts, kind=kind)
    frame_map = grounding.to_frame(grid_map, side=self.image_size, smoothing=smoothing)[0]
    height, width = pixels.shape
    return np.asarray(
        augment.from_eval_frame(frame_map, height=height, width=width), np.float32)

  def encode_images(
      self, images: Iterable[Image], *, count: int, names: Sequence[str] = (), label: str = '',
  ) -> shapes.ImageFeatures:
    """All features (NumPy) of `count` images; arguments as in `image_batches`."""
    return _joined(self.image_batches(images, count=count, names=names, label=label))

  def image_batches(
      self, images: Iterable[Image], *, count: int, names: Sequence[str] = (), label: str = '',
  ) -> Iterator[shapes.ImageFeatures]:
    """Features (NumPy) of `count` images, a batch at a time: pixels of a large set fill memory.

    Args:
      images: read and prepared as they are consumed; may come one by one.
      count: how many there are.
      names: what an error calls them; position unless given.
      label: shows progress under this name.
    """
    return self._framed('encode_image', images, count=count, names=names, label=label)

  def image_maps(
      self, images: Iterable[Image], *, count: int, names: Sequence[str] = (), label: str = '',
  ) -> resnet.Maps:
    """The tower's own maps of `count` images, float16 (NumPy), for heads on frozen features.

    Arguments as in `image_batches`; `models.plan.encode_maps` says which maps. A 128-pixel
    image takes 120 kB with a tiny ResNet, a 224-pixel one 3 MB with a ResNet-50.
    """
    largest = float(np.finfo(np.float16).max)
    return _joined([
        part.replace(stages=tuple(
            np.clip(stage, -largest, largest).astype(np.float16) for stage in part.stages))
        for part in self._framed('encode_maps', images, count=count, names=names, label=label)])

  def _framed(self, method: str, images, *, count: int, names: Sequence[str], label: str):
    def row(numbered):
      i, image = numbered
      name = names[i] if names else f'image {i}'
      return augment.eval_frame(read_image(image, name=name), size=self.image_size)

    size = self.image_size
    blank = (np.zeros((size, size), np.uint8), np.array([0, 0, size, size], np.int32))
    return self._encoded(
        method, enumerate(images), row=row, blank=blank, count=count, label=label)

  def encode_texts(
      self, texts: Sequence[str], *, name: str = 'text', label: str = '',
  ) -> shapes.TextFeatures:
    """All features (NumPy) of texts; `name` is what an error calls one."""
    _require_sequence(texts, f'{name}s')
    for i, text in enumerate(texts):
      which = name if len(texts) == 1 else f'{name} {i}'
      if not isinstance(text, str):
        raise InferenceError(f'{which} is {type(text).__name__}, not a text; give a str')
      if not text.strip():
        raise InferenceError(f'{which} is empty; give at least one word')
    def row(text):
      tokens = self._tokenizer(text)
      return tokens.pieces, tokens.piece_word, tokens.word_form

    blank = (np.zeros(self.config.data.max_pieces, np.int32),
             np.full(self.config.data.max_pieces, -1, np.int32),
             np.full(self.config.data.max_words, -1, np.int32))
    return _joined(self._encoded(
        'encode_text', texts, row=row, blank=blank, count=len(texts), label=label))

  def words(self, text: str) -> tuple[str, ...]:
    """The words of a text that have vectors, in order: without punctuation, cut at the end."""
    return self._tokenizer(text).words

  def ground_pairs(
      self, images: shapes.ImageFeatures, texts: shapes.TextFeatures, *, kind: matching.MapKind,
  ) -> Float[np.ndarray, 'n h w']:
    """Grid map of text n on image n. Padding has the map's minimum.

    Source: method (18).
    """
    if kind is matching.MapKind.POOLED:
      maps = np.einsum('npd,nd->np', images.pixels, texts.pooled)
    else:
      maps = self._by_words(matching.phrase_map, images, texts, kind=kind)
    lowest = np.where(images.is_pixel, maps, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    lowest = np.where(np.isfinite(lowest), lowest, 0)
    return np.where(images.is_pixel, maps, lowest).astype(np.float32).reshape(-1, *self.grid)

  def match(
      self, images: shapes.ImageFeatures, texts: shapes.TextFeatures, *, label: str = '',
  ) -> Float[np.ndarray, 'n m']:
    """How well the words of text m find their regions in image n: 10 Z of method (9), logits.

    `label` shows progress under this name.

    Raises:
      InferenceError: the model was trained without (9).
    """
    if not self.matches_words:
      raise InferenceError(
          'this model was trained without matching words across pairs (objective.negatives = '
          f'{self.config.objective.negatives}, objective.cross_pair_weight = '
          f'{self.config.objective.cross_pair_weight:g}); use similarity()')
    if not len(texts.words):
      return np.zeros((len(images.pixels), 0), np.float32)
    settings = self.config.objective
    words = matching.local_words(settings, texts)
    columns = (matching.local_pixels(settings, images), images.is_pixel)
    blank = tuple(np.zeros(column.shape[1:], column.dtype) for column in columns)
    return _joined(self._shared(
        lambda *batch: matching.match_logits(
            self._relation, words, texts.is_word, *batch, stage=self._last_stage,
            settings=settings),
        zip(*columns), row=tuple, blank=blank, count=len(columns[0]), label=label))

  @property
  def _relation(self) -> Float[jax.Array, 'd d'] | None:
    return self._variables['params'].get('relation')

  def word_maps(
      self, images: shapes.ImageFeatures, texts: shapes.TextFeatures, *, kind: matching.MapKind,
  ) -> tuple[Float[np.ndarray, 'n t p'], Float[np.ndarray, 'n t']]:
    """The map of each word of text n on image n, 0 in padding, and the words' weights.

    The phrase's map is the weighted sum; `kind` is REGIONS or WORDS.
    """
    return self._by_words(matching.word_maps, images, texts, kind=kind)

  def _by_words(self, function, images, texts, *, kind):
    settings = self.config.objective
    columns = (matching.local_words(settings, texts), texts.is_word, texts.attention,
               matching.local_pixels(settings, images), images.is_pixel)
    blank = tuple(np.zeros(column.shape[1:], column.dtype) for column in columns)
    return _joined(self._shared(
        lambda *batch: function(
            self._relation, *batch, stage=self._last_stage, settings=settings, kind=kind),
        zip(*columns), row=tuple, blank=blank, count=len(columns[0]), label=''))

  def _encoded(self, method: str, items, *, row, blank, count: int, label: str):
    for features in self._shared(
        lambda *batch: _encode(self._variables, *batch, tower=self._tower, method=method),
        items, row=row, blank=blank, count=count, label=label):
      if not all(np.isfinite(x).all() for x in jax.tree.leaves(features)):
        raise InferenceError(
            f'{method} gives values that are not finite: the weights are damaged, or training '
            'has diverged; use an earlier checkpoint')
      yield features

  def _shared(
      self, function: Callable[..., Any], items: Iterable[Any], *, row: Callable[[Any], tuple],
      blank: tuple[np.ndarray, ...], count: int, label: str,
  ):
    """`function` (arrays [n ...] to arrays [n ...]) of all items, a batch at a time.

    `row` makes the arrays of one item, in the process alone that needs them.
    """
    size = self._shape(count)

    def of_own(batches):
      own = [row(item) for item in dict(enumerate(batches)).get(self._team.index, ())]
      columns = zip(*own, *[blank] * (size - len(own)), strict=True)
      return jax.device_get(function(*map(np.stack, columns)))

    rounds = _blocks(_blocks(items, size), self._team.count)
    with _progress(label, total=count) as bar:
      for batches, found in _side_by_side(of_own, rounds):
        found = self._team.stack(found)
        for k, batch in enumerate(batches):
          yield jax.tree.map(lambda x, k=k, end=len(batch): x[k, :end], found)
          bar.update(len(batch))

  def _shape(self, count: int) -> int:
    return 1 if count == 1 else self._batch_size


def load(path: str | os.PathLike[str], *, platform: str = 'cpu') -> Model:
  """The model of a checkpoint, on the first device of `platform`.

  Raises:
    checkpoint.CheckpointError: no checkpoint there, or a damaged one.
    InferenceError: no such platform.
  """
  try:
    device = jax.devices(platform)[0]
  except RuntimeError as error:
    raise InferenceError(
        f"platform={platform!r}: JAX has no such device here; use 'cpu', or see which platforms "
        f'JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")!r} allows') from error
  restored = checkpoint.load_model(path)
  variables = jax.device_put(restored.variables, device)
  return Model(restored.config, restored.vocabulary, variables)


def read_image(image: Image, *, name: str) -> UInt8[np.ndarray, 'h w']:
  """Grey values of an image; `name` is what an error calls it.

  Raises:
    InferenceError: missing, not an image, too large, or an array of another kind.
  """
  if isinstance(image, np.ndarray):
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
      raise InferenceError(
          f'{name} is an array of shape {image.shape} and type {image.dtype}; give grey values '
          'as uint8 [height width], 0 black to 255 white')
    return image
  if isinstance(image, (str, os.PathLike)):
    image = os.fspath(image)
    name = image if image in name else f'{name} ({image})'
  if not isinstance(image, (str, bytes, bytearray)):
    raise InferenceError(
        f'{name} is {type(image).__name__}; give a path, the bytes of a JPEG, PNG or DICOM, or a '
        'uint8 array [height width]')
  try:
    return decode.read_grey(image if isinstance(image, str) else bytes(image), name=name)
  except decode.DecodeError as error:
    raise InferenceError(f'{error}; replace it or check the path') from error


@functools.partial(jax.jit, static_argnames=('tower', 'method'))
def _encode(variables, *batch, tower, method):
  return tower.apply(variables, *batch, train=False, method=method)


def _progress(label: str, *, total: int) -> tqdm.tqdm:
  return tqdm.tqdm(total=total, desc=label, disable=not label, file=sys.stdout,
                   mininterval=0.5 if sys.stdout.isatty() else 5)


def _side_by_side(
    function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
  """Each item and `function` of it, in order; two at a time are worked on, a third waits.

  One batch alone leaves a CPU's cores idle between its products, and the device idle while the
  next one's images are read. Results are to the bit those of one batch at a time.
  """
  waiting = collections.deque()
  with futures.ThreadPoolExecutor(2) as pool:
    for item in items:
      waiting.append((item, pool.submit(function, item)))
      if len(waiting) > 2:
        item, future = waiting.popleft()
        yield item, future.result()
    for item, future in waiting:
      yield item, future.result()


def _joined(parts):
  """Features of all batches, one after the other."""
  return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _blocks(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
  """Lists of `size` items, the last one shorter; one at least, which may be empty."""
  items = iter(items)
  block = list(itertools.islice(items, size))
  yield block
  while block := list(itertools.islice(items, size)):
    yield block


def _require_sequence(values: Any, name: str) -> None:
  if isinstance(values, (str, bytes, os.PathLike)):
    raise InferenceError(
        f'{name} is a single {type(values).__name__}; give a list, also for one: [...]')
