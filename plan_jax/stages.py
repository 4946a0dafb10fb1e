"""The progressive schedule: which stage a step belongs to, and its values."""

import dataclasses

import numpy as np

from plan_jax import config
from plan_jax import shapes


@dataclasses.dataclass(frozen=True)
class _Span:
  """One stage's steps, both ends included."""

  name: str
  stage: config.Stage
  first: int
  last: int


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Stages laid out over a run. Make it with `schedule`."""

  spans: tuple[_Span, ...]

  def values(self, step: int) -> shapes.StageValues:
    """The stage's values at `step`, numpy fp32 scalars; past the end, those of the last."""
    span = self._span(step)
    stage = span.stage
    threshold = config.Threshold
    done = min(step - span.first, span.last - span.first) / max(span.last - span.first, 1)
    return shapes.StageValues(
        sigma_fixed=np.float32(stage.sigma if stage.threshold is threshold.FIXED else 0),
        sigma_per_cell=np.float32(stage.threshold is threshold.UNIFORM),
        sigma_percentile=np.float32(
            stage.sigma if stage.threshold is threshold.PERCENTILE else 0),
        gamma=np.float32(stage.gamma),
        keep=np.float32(stage.keep),
        reliability=np.float32(stage.reliability),
        margin=np.float32(stage.margin),
        refine_weight=np.float32(
            stage.refine_start + (stage.refine_end - stage.refine_start) * done),
        pixel_word_weight=np.float32(stage.pixel_word),
        short_text_prob=np.float32(stage.short_text_prob))

  def name(self, step: int) -> str:
    """The stage's name at `step`."""
    return self._span(step).name

  @property
  def ends(self) -> dict[str, int]:
    """How many steps of the run are done when each stage ends, in order."""
    return {span.name: span.last + 1 for span in self.spans}

  def _span(self, step: int) -> _Span:
    if step < 0:
      raise ValueError(f'step={step}: steps count from 0')
    return next((span for span in self.spans if step <= span.last), self.spans[-1])


def schedule(settings: config.Stages, *, total_steps: int) -> Schedule:
  """Lays the stages out over steps 0 .. total_steps - 1, in proportion to their shares.

  Borders are rounded to whole steps; a stage that gets none is left out.

  Raises:
    ValueError: if a share is negative, the shares do not sum to 1, or there is no step.

  Source: method (16).
  """
  if total_steps < 1:
    raise ValueError(f'total_steps={total_steps}: a run needs at least one step')
  stages = [(f.name, getattr(settings, f.name)) for f in dataclasses.fields(settings)]
  for name, stage in stages:
    if stage.share < 0:
      raise ValueError(f'stages.{name}.share={stage.share}: use a share from 0 to 1')
  total = sum(stage.share for _, stage in stages)
  if abs(total - 1) > 1e-6:
    listed = ', '.join(f'stages.{name}.share={stage.share}' for name, stage in stages)
    raise ValueError(f'the shares sum to {total:g}, not 1: change one of {listed}')
  spans, first, share = [], 0, 0.0
  for name, stage in stages:
    share += stage.share
    end = round(share * total_steps)
    if end > first:
      spans.append(_Span(name=name, stage=stage, first=first, last=end - 1))
      first = end
  return Schedule(spans=tuple(spans))
