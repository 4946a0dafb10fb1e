"""The configuration: frozen dataclasses with their defaults, one for each part.

`configs/*.py` build an `ml_collections.ConfigDict` from `defaults()` and change
what differs; `resolve()` turns the result, command-line overrides included, into
a validated `Config`. Code below the command lines takes these dataclasses or
plain keyword arguments, never a ConfigDict.
"""

import dataclasses
import enum
from typing import Any, Mapping, get_type_hints

import ml_collections

from plan_jax import merge
from plan_jax import rules


ConfigError = merge.ConfigError


class ImageVariant(enum.StrEnum):
  """Image towers. `resnet_tiny` is a half-width ResNet-10 for CPU demos."""

  RESNET_TINY = 'resnet_tiny'
  RESNET18 = 'resnet18'
  RESNET50 = 'resnet50'
  VIT_TI16 = 'vit_ti16'
  VIT_S16 = 'vit_s16'
  VIT_B16 = 'vit_b16'


class TextVariant(enum.StrEnum):
  """BERT sizes (Turc et al., arXiv 1908.08962), and MiniLM's (Wang et al., NeurIPS 2020)."""

  BERT_TINY = 'bert_tiny'
  BERT_MINI = 'bert_mini'
  BERT_SMALL = 'bert_small'
  BERT_MEDIUM = 'bert_medium'
  BERT_BASE = 'bert_base'
  MINILM_L6 = 'minilm_l6'
  MINILM_L12 = 'minilm_l12'


class Relation(enum.StrEnum):
  """Word-pixel similarity: method (3) with Delta fixed at 0, or learned."""

  COSINE = 'cosine'
  LEARNED = 'learned'


class Remat(enum.StrEnum):
  """What the backward pass of the towers computes again instead of keeping it.

  `none` keeps everything, `blocks` the inputs of the blocks only (transformer blocks, residual
  blocks and stem of a ResNet), `dots` also what comes out of matrix products and convolutions.
  """

  NONE = 'none'
  DOTS = 'dots'
  BLOCKS = 'blocks'


class Sharding(enum.StrEnum):
  """Where parameters and optimizer live: a copy on each device, or split over all (FSDP)."""

  REPLICATED = 'replicated'
  FSDP = 'fsdp'


class PixelHead(enum.StrEnum):
  """What projects the pixels: a head of their own, or that of the pooled image.

  `global` is how a model trained on pooled vectors alone (ConVIRT) is asked for maps.
  """

  LOCAL = 'local'
  GLOBAL = 'global'


class ObjectiveName(enum.StrEnum):
  """Training objectives: PLAN (reconstructed), and the baselines."""

  PLAN = 'plan'
  CONVIRT = 'convirt'
  SPARC = 'sparc'
  GLORIA = 'gloria'
  MGCA = 'mgca'


class Gate(enum.StrEnum):
  """How method (5) keeps the salient part of a similarity row."""

  SOFT = 'soft'
  HARD = 'hard'


class Negatives(enum.StrEnum):
  """Scope of the negatives of method (9); `pair` turns the term off."""

  PAIR = 'pair'
  DEVICE = 'device'
  GLOBAL = 'global'


class Algorithm(enum.StrEnum):
  """How the scores of method (9) are computed; the values are the same.

  `auto` is blockwise, or ring where the words of all devices would fill a GiB;
  `reference` holds all pairs in memory; `fused` is one kernel, for TPUs
  (not yet run on one).
  """

  AUTO = 'auto'
  REFERENCE = 'reference'
  BLOCKWISE = 'blockwise'
  RING = 'ring'
  FUSED = 'fused'


class Teacher(enum.StrEnum):
  """Where the targets of method (13) come from."""

  EMA = 'ema'
  SELF = 'self'


class TermWeights(enum.StrEnum):
  """omega of method (10): clipped [CLS] attention, or uniform."""

  ATTENTION = 'attention'
  UNIFORM = 'uniform'


class Threshold(enum.StrEnum):
  """sigma_k of method (16): 1/P, a constant, or a percentile of the row."""

  UNIFORM = 'uniform'
  FIXED = 'fixed'
  PERCENTILE = 'percentile'


class Normalisation(enum.StrEnum):
  """What an image tower saw of a grey value, which ours sees with mean and deviation .5.

  `auto` is what its preprocessor_config.json says. ImageNet's is that of each colour.
  """

  AUTO = 'auto'
  HALF = 'half'
  IMAGENET = 'imagenet'


class Unfit(enum.StrEnum):
  """What becomes of foreign weights that do not fit: an error, or fresh ones in their place."""

  FAIL = 'fail'
  FRESH = 'fresh'


class Split(enum.StrEnum):
  """Whose figures a run ends with; choices belong on `val`."""

  VAL = 'val'
  TEST = 'test'


class Precision(enum.StrEnum):
  """Compute dtype of the towers. `auto`: bf16 where the hardware has it."""

  AUTO = 'auto'
  FLOAT32 = 'float32'
  BFLOAT16 = 'bfloat16'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
  """Training-time changes. No flips: reports say left and right."""

  min_area: float = 0.8  # smallest share of the padded square that a crop keeps
  rotate_degrees: float = 5.0  # largest rotation, either way
  brightness: float = 0.1  # largest shift, share of the full grey range
  contrast: float = 0.2  # largest relative change of contrast


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
  """Records and what a batch is made of."""

  records: str = ''  # directory written by plan_jax.data.prepare
  image_size: int = 224  # side of the square that the model sees, pixels
  max_pieces: int = 128  # word pieces a report, [CLS] and [SEP] included
  max_words: int = 97  # words a report
  augment: Augment = Augment()
  workers: int = 0  # reader processes a host; 0: threads of the process that trains
  threads: int = 2  # reader threads, of each worker


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
  """Towers and heads."""

  image: ImageVariant = ImageVariant.RESNET50
  vit_epsilon: float = 1e-12  # of a ViT's norms; torchvision and timm have 1e-6
  pixel_stage: int = 3  # ResNet stage whose map gives the pixels: 2, 3 or 4
  pixel_head: PixelHead = PixelHead.LOCAL
  text: TextVariant = TextVariant.BERT_BASE
  dropout: float = 0.1  # in the text tower
  remat: Remat = Remat.NONE
  joint_dim: int = 128
  relation: Relation = Relation.LEARNED
  temperature: float = 0.07  # tau_g, its start when learned
  learn_temperature: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Init:
  """Pretrained towers that a new run starts from (docs/convert.md); '' is random weights."""

  text: str = ''  # directory of a BERT, or a file of its weights
  image: str = ''  # the same of a ViT or ResNet, of transformers, torchvision or timm
  normalisation: Normalisation = Normalisation.AUTO  # of the image tower's training
  unfit: Unfit = Unfit.FAIL


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """Which loss, with the switches of docs/method.md.

  The baselines train by `negatives`, `algorithm` and `block_mib` (GLoRIA) and nothing else;
  maps of phrases weigh words by `term_weights` for all.
  """

  name: ObjectiveName = ObjectiveName.PLAN
  gate: Gate = Gate.SOFT
  gate_width: float = 0.05  # kappa of (5)
  local_temperature: float = 0.1  # tau_l of (7), (8), (14)
  word_region_weight: float = 0.0  # of (7)
  pixel_word_weight: float = 0.0  # of (8), times the stage's
  negatives: Negatives = Negatives.GLOBAL
  cross_pair_weight: float = 1.0  # lambda_b of (9)
  cross_pair_words: int = 0  # words a report that (11) draws for (9) in each step; 0: all
  refine_weight: float = 0.1  # lambda_p of (14), times the stage's
  teacher: Teacher = Teacher.EMA
  ema_decay: float = 0.996  # mu of (13)
  target_blur: float = 0.5  # Gaussian sigma on the grid, cells (13)
  term_weights: TermWeights = TermWeights.ATTENTION
  term_filter: bool = True  # (11): keep the share `stages.*.keep` of words
  reliability_images: int = 4  # other images that (15) compares with
  rounds: int = 1  # (17b): 1 = one pass of (3)-(6)
  algorithm: Algorithm = Algorithm.AUTO  # of (9)
  block_mib: int = 256  # byte budget of one tile of (9); on TPUs at most 32 are used, on CPUs 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
  """One stage of method (16). `share` 0 leaves the stage out."""

  share: float
  threshold: Threshold
  sigma: float = 0.0  # threshold value, or the percentile in 0..1
  gamma: float = 1.0
  keep: float = 1.0
  reliability: bool = False
  margin: float = 0.0
  refine_start: float = 0.0  # weight of (14) at the stage's first step ...
  refine_end: float = 0.0  # ... and at its last
  pixel_word: float = 1.0
  short_text_prob: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stages:
  """The progressive schedule, in order."""

  discover: Stage = Stage(share=0.2, threshold=Threshold.UNIFORM, pixel_word=0.0)
  refine: Stage = Stage(
      share=0.3, threshold=Threshold.FIXED, sigma=0.5, keep=0.7, reliability=True,
      refine_end=1.0)
  focus: Stage = Stage(
      share=0.5, threshold=Threshold.PERCENTILE, sigma=0.85, gamma=2.0, keep=0.4,
      reliability=True, margin=0.02, refine_start=1.0, refine_end=1.0,
      short_text_prob=0.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerOptim:
  """The pace of one tower beside the heads', for pretrained ones (docs/convert.md)."""

  freeze: bool = False  # it stays as it is: no update, no decay, no dropout, running statistics
  lr_scale: float = 1.0  # times `optim.lr`
  layer_decay: float = 1.0  # times this from each layer to the one before it
  warmup: float = 0.0  # share of all steps, where that is longer than `optim.warmup`


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
  """AdamW with linear warm-up and cosine decay."""

  lr: float = 2e-5
  end_lr: float = 1e-8
  warmup: float = 0.4  # share of all steps
  weight_decay: float = 0.05  # not of norms and biases
  b1: float = 0.9
  b2: float = 0.999
  clip_norm: float = 1.0
  image: TowerOptim = TowerOptim()
  text: TowerOptim = TowerOptim()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
  """Length and rhythm of a run."""

  steps: int = 50_000
  batch_size: int = 256  # pairs a step, over all devices
  chunks: int = 1  # parts in which towers and heads see a batch; the losses see all of it
  seed: int = 0
  sharding: Sharding = Sharding.REPLICATED
  precision: Precision = Precision.AUTO
  log_every: int = 20  # steps
  eval_every: int = 1000
  eval_pairs: int = 512  # validation pairs used during training
  checkpoint_every: int = 1000
  keep_newest: int = 2  # besides the best and the last of each stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """What the run is asked for at its end."""

  split: Split = Split.TEST
  prompts: str = ''  # prompt file for zero-shot classification; '' leaves it out
  max_pairs: int = 1000  # pairs used
  pictures: int = 24  # grounding overlays drawn


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
  """A whole run."""

  data: Data = Data()
  model: Model = Model()
  init: Init = Init()
  objective: Objective = Objective()
  stages: Stages = Stages()
  optim: Optim = Optim()
  train: Train = Train()
  evaluation: Evaluation = Evaluation()


def defaults() -> ml_collections.ConfigDict:
  """All settings with their defaults, as a ConfigDict for `configs/*.py`."""
  return ml_collections.ConfigDict(to_dict(Config()))


def to_dict(config: Config) -> dict[str, Any]:
  """`config` as nested plain dicts (JSON-ready); `resolve` is its inverse."""

  def plain(value):
    if dataclasses.is_dataclass(value):
      return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return str(value) if isinstance(value, enum.StrEnum) else value

  return plain(config)


def resolve(values: Mapping[str, Any] | ml_collections.ConfigDict) -> Config:
  """Turns nested settings into a validated `Config`; what is not named keeps its default.

  Raises:
    ConfigError: unknown key, wrong type, or values that cannot run together.
  """
  if isinstance(values, ml_collections.ConfigDict):
    values = values.to_dict()
  config = merge.merge(Config(), values, path='config')
  for message in rules.broken(config):
    raise ConfigError(message)  # the first one; mended, the next one shows
  return config


def require_key(key: str) -> None:
  """Checks that a dotted key such as 'optim.lr' names a setting.

  Raises:
    ConfigError: it does not.
  """
  node, path = Config, 'config'
  for part in key.split('.'):
    kinds = get_type_hints(node) if dataclasses.is_dataclass(node) else {}
    merge.require_known(part, kinds, path)
    node, path = kinds[part], f'{path}.{part}'
