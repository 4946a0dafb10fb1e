"""The model as ONNX, by way of its PyTorch form; needs the extra `onnx`."""

from collections.abc import Mapping
import importlib.util
import logging
import pathlib
from typing import Any
import warnings

import numpy as np

from plan_jax import errors
from plan_jax.convert import agreement
from plan_jax.convert import tables

PACKAGES = ('torch', 'onnx', 'onnxscript', 'onnxruntime')
# Of the texts' features, what maps need; both have `pooled`, and inputs need names of their own.
GROUND = ('pixels', 'pixel_norm', 'is_pixel', 'words', 'word_norm', 'is_word', 'attention',
           'text_pooled')


class OnnxError(errors.UserError):
  """ONNX cannot be written here; the message says what is missing."""


def require_packages() -> None:
  """Fails before the work, not after it.

  Raises:
    OnnxError: a package of the extra is missing.
  """
  missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
  if missing:
    raise OnnxError(
        f'--format=onnx: needs {", ".join(missing)}; install the extra `onnx` of plan_jax: '
        "pip install -e '.[onnx]' in its directory")


def write(
    out: pathlib.Path, settings: Mapping[str, Any], tensors: Mapping[str, tables.Tensors],
) -> None:
  """Writes `images.onnx`, `texts.onnx` and `ground.onnx`, weights inside, fp32.

  Args:
    out: an existing directory.
    settings: of `plan_torch.Plan`.
    tensors: its text, image and heads.
  """
  import torch  # pylint: disable=g-import-not-at-top
  from plan_jax.convert import plan_torch  # pylint: disable=g-import-not-at-top

  model = plan_torch.Plan(settings, {
      part: {name: torch.from_numpy(np.array(x)) for name, x in of.items()}
      for part, of in tensors.items()}).eval()

  class Program(torch.nn.Module):
    """A function of the model as what the exporter takes."""

    def __init__(self, function):
      super().__init__()
      self.model, self.function = model, function

    def forward(self, *arguments):
      return self.function(*arguments)

  def images(frames, extent):
    found = model.encode_images(frames, extent)
    return tuple(getattr(found, name) for name in agreement.IMAGES)

  def texts(pieces, piece_word):
    found = model.encode_texts(pieces, piece_word)
    return tuple(getattr(found, name) for name in agreement.TEXTS)

  def ground(pixels, pixel_norm, is_pixel, words, word_norm, is_word, attention, text_pooled):
    seen = plan_torch.Images(
        pooled=None, pixels=pixels, pixel_norm=pixel_norm, is_pixel=is_pixel, backbone=None)
    read = plan_torch.Texts(
        pooled=text_pooled, words=words, word_norm=word_norm, is_word=is_word,
        attention=attention, backbone=None)
    return tuple(model.ground(seen, read, kind=str(kind)) for kind in agreement.MAPS.values())

  size, length = settings['image_size'], settings['max_pieces']
  frames = torch.zeros((2, size, size), dtype=torch.uint8)
  extent = torch.tensor([[0, 0, size, size]] * 2, dtype=torch.int32)
  pieces = torch.ones((2, length), dtype=torch.int32)
  piece_word = torch.zeros((2, length), dtype=torch.int32)
  with torch.no_grad():
    seen, read = model.encode_images(frames, extent), model.encode_texts(pieces, piece_word)
  features = {**vars(seen), **vars(read), 'text_pooled': read.pooled}
  by_batch = {0: torch.export.Dim('b')}
  for name, function, inputs, arguments, outputs, axes in (
      ('images', images, ('frames', 'extent'), (frames, extent), agreement.IMAGES, by_batch),
      ('texts', texts, ('pieces', 'piece_word'), (pieces, piece_word), agreement.TEXTS,
       {**by_batch, 1: torch.export.Dim('s', max=length)}),
      ('ground', ground, GROUND, tuple(features[x] for x in GROUND), tuple(agreement.MAPS),
       by_batch)):
    with warnings.catch_warnings():  # of the exporter, about itself
      warnings.simplefilter('ignore')
      logging.getLogger('torch.onnx').setLevel(logging.ERROR)
      torch.onnx.export(
          Program(function), arguments, str(out / f'{name}.onnx'), dynamo=True, verbose=False,
          external_data=False, input_names=inputs, output_names=outputs,
          dynamic_shapes=(tuple(dict(axes) for _ in inputs),))


def read(out: pathlib.Path) -> agreement.Programs:
  """The programs of `write`, run by onnxruntime on the CPU."""
  import onnxruntime  # pylint: disable=g-import-not-at-top

  def program(name):
    session = onnxruntime.InferenceSession(
        str(out / f'{name}.onnx'), providers=['CPUExecutionProvider'])
    inputs = [x.name for x in session.get_inputs()]
    outputs = [x.name for x in session.get_outputs()]
    return lambda *arguments: dict(zip(
        outputs, session.run(outputs, dict(zip(inputs, arguments, strict=True))), strict=True))

  ground = program('ground')

  def by_name(seen, read):
    features = {**seen, **read, 'text_pooled': read['pooled']}
    return ground(*(features[name] for name in GROUND))

  return agreement.Programs(images=program('images'), texts=program('texts'), ground=by_name)
