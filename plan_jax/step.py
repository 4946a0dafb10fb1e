"""The training step: one compiled, sharded, donated function for all stages."""

import dataclasses
import functools
from typing import Any, Callable

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from plan_jax import config as config_lib
from plan_jax import flops
from plan_jax import in_parts
from plan_jax import mesh as mesh_lib
from plan_jax import optim
from plan_jax import shapes
from plan_jax import stages
from plan_jax.losses import cross_pair
from plan_jax.models import plan as plan_model
from plan_jax.models import vit
from plan_jax.objectives import convirt
from plan_jax.objectives import gloria
from plan_jax.objectives import mgca
from plan_jax.objectives import plan
from plan_jax.objectives import sparc

Metrics = dict[str, jax.Array]
TrainStep = Callable[['TrainState', shapes.Batch, shapes.StageValues], tuple['TrainState', Metrics]]


@struct.dataclass
class TrainState:
  """All that a run carries from step to step; parameters are fp32 masters.

  `key` is the root key and the only random state there is: each step folds its
  number in. `ema` is the teacher of method (13) but for its frozen towers, which are the
  model's own; empty with `teacher=self`.
  `skipped` counts the steps whose loss or gradient was not finite.
  """

  step: jax.Array
  params: Any
  batch_stats: Any
  ema: Any
  opt_state: Any
  key: jax.Array
  skipped: jax.Array


def compute_dtype(precision: config_lib.Precision) -> jnp.dtype:
  """Compute dtype of the towers; `auto` is bf16 on TPU and on GPU, else fp32.

  XLA's bf16 on CPU is slower than its fp32.
  """
  if precision == config_lib.Precision.AUTO:
    on_cpu = jax.default_backend() == 'cpu'
    precision = config_lib.Precision.FLOAT32 if on_cpu else config_lib.Precision.BFLOAT16
  return jnp.dtype(str(precision))


def build_model(config: config_lib.Config, *, vocab_size: int) -> plan_model.PlanModel:
  """The towers and heads that `config` asks for."""
  return plan_model.make_model(
      config.model,
      vocab_size=vocab_size,
      max_pieces=config.data.max_pieces,
      dtype=compute_dtype(config.train.precision),
      prototypes=mgca.PROTOTYPES if config.objective.name is config_lib.ObjectiveName.MGCA else 0,
      frozen=frozenset(
          name for name in ('image', 'text') if getattr(config.optim, name).freeze),
      parts=config.train.chunks,
  )


def contrast_plan(config: config_lib.Config, mesh: jax.sharding.Mesh) -> cross_pair.Plan | None:
  """How the step matches words across pairs, by method (9); None where it does not."""
  settings = config.objective
  if not (plan.has_cross_pair(settings)
          or settings.name is config_lib.ObjectiveName.GLORIA):
    return None
  rows, columns = plan_model.grid_shape(config.model, config.data.image_size)
  is_plan = settings.name is config_lib.ObjectiveName.PLAN
  return cross_pair.plan(
      batch=config.train.batch_size, pixels=rows * columns, dim=config.model.joint_dim,
      words=min(is_plan and settings.cross_pair_words or config.data.max_words, config.data.max_words),
      is_global=settings.negatives is config_lib.Negatives.GLOBAL, mib=settings.block_mib,
      devices=mesh.size, platform=mesh.devices.flat[0].platform, algorithm=settings.algorithm,
      has_relation=is_plan and config.model.relation is config_lib.Relation.LEARNED,
      rounds=settings.rounds if is_plan else 1)


def empty_batch(settings: config_lib.Data, *, size: int) -> shapes.Batch:
  """A batch of `size` blank pairs, for shapes and initialisation."""
  image = np.zeros((size, settings.image_size, settings.image_size), np.uint8)
  extent = np.tile(np.array([0, 0, settings.image_size, settings.image_size], np.int32), (size, 1))
  return shapes.Batch(
      image=image,
      extent=extent,
      pieces=np.zeros((size, settings.max_pieces), np.int32),
      piece_word=np.full((size, settings.max_pieces), -1, np.int32),
      word_form=np.full((size, settings.max_words), -1, np.int32),
      is_negation=np.zeros((size, settings.max_words), bool),
  )


def init_state(
    model: plan_model.PlanModel,
    optimizer: optax.GradientTransformation,
    *,
    config: config_lib.Config,
) -> TrainState:
  """A fresh state from `config.train.seed`; call it under `jax.jit` to place it."""
  key = jax.random.PRNGKey(config.train.seed)
  variables = model.init(
      {'params': key, 'dropout': key}, empty_batch(config.data, size=2), train=False)
  params = variables['params']
  return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      batch_stats=variables.get('batch_stats', {}),
      ema=first_ema(params, config=config),
      opt_state=optimizer.init(params),
      key=jax.random.fold_in(key, 1),
      skipped=jnp.zeros((), jnp.int32),
  )


def first_ema(params: Any, *, config: config_lib.Config) -> Any:
  """The teacher of a run that starts with `params`: a copy of what moves."""
  if not _uses_ema(config.objective):
    return {}
  frozen = optim.frozen_towers(config.optim)
  return {name: jax.tree.map(jnp.copy, x) for name, x in params.items() if name not in frozen}


def state_shardings(
    model: plan_model.PlanModel, optimizer: optax.GradientTransformation, *,
    config: config_lib.Config, mesh: jax.sharding.Mesh,
) -> TrainState:
  """Where each array of the state lives (`config.train.sharding`)."""
  state = jax.eval_shape(lambda: init_state(model, optimizer, config=config))
  return mesh_lib.of_state(state, mesh=mesh, how=config.train.sharding)


def make_train_step(
    model: plan_model.PlanModel,
    optimizer: optax.GradientTransformation,
    *,
    config: config_lib.Config,
    mesh: jax.sharding.Mesh,
) -> TrainStep:
  """The jitted step over `mesh`: batch split over `data`, state placed and donated.

  The stage is data, so one compilation serves all stages. A step whose loss or
  gradient is not finite changes nothing but the step and skip counters.
  """
  settings = config.objective
  grid = plan_model.grid_shape(config.model, config.data.image_size)
  schedule = optim.learning_rate(config.optim, total_steps=config.train.steps)
  everywhere, rows = mesh_lib.replicated(mesh), mesh_lib.split(mesh)
  placed = state_shardings(model, optimizer, config=config, mesh=mesh)

  of_parts = functools.partial(_of_parts, chunks=config.train.chunks)

  def forward(variables, batch, key):
    if config.train.chunks == 1:
      return model.apply(
          variables, batch, train=True, rngs={'dropout': key}, mutable=['batch_stats'])
    features = of_parts(
        lambda key, batch: model.apply(
            variables, batch, train=True, rngs={'dropout': key}, method='look'), key, batch)
    return model.apply(variables, features, train=True, mutable=['batch_stats'], method='project')

  def change(state, batch, stage):
    key = jax.random.fold_in(state.key, state.step)
    dropout_key, text_key, objective_key = jax.random.split(key, 3)

    def objective(params):
      variables = {'params': params, 'batch_stats': state.batch_stats}
      outputs, updates = forward(variables, batch, dropout_key)
      if settings.name is not config_lib.ObjectiveName.PLAN:
        return _baseline_loss(
            outputs, config=config, mesh=mesh), updates

      def short_text(keep):
        read = of_parts(
            lambda key, *texts: model.apply(
                variables, *texts[:3], keep=texts[3], train=True, rngs={'dropout': key},
                method='read'),
            text_key, batch.pieces, batch.piece_word, batch.word_form, keep)
        text, _ = model.apply(
            variables, read, train=True, mutable=['batch_stats'], method='project_text')
        return text.pooled

      def teach():
        own = jax.lax.stop_gradient(outputs)  # before the branch, which would be differentiated
        if not _uses_ema(settings):
          return own
        ema = {'params': {**state.params, **state.ema}, 'batch_stats': state.batch_stats}

        def of_ema():
          features = of_parts(
              lambda _, batch: model.apply(ema, batch, train=False, method='look'),
              dropout_key, batch)
          return model.apply(ema, features, train=False, method='project')

        return jax.lax.cond(_asks_teacher(stage), of_ema, lambda: own)

      terms = plan.plan_loss(
          outputs, batch, teacher=teach(), stage=stage, settings=settings, grid=grid,
          rng=objective_key, short_text=short_text, mesh=mesh)
      return terms, updates

    def total(params):
      terms, updates = objective(params)
      return terms.total, (terms, updates)

    grads, (terms, updates) = jax.grad(total, has_aux=True)(state.params)
    grad_norm = optax.global_norm(grads)
    finite = jnp.isfinite(terms.total) & jnp.isfinite(grad_norm)

    changes, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, changes)
    ema = jax.tree.map(
        lambda old, new: settings.ema_decay * old + (1 - settings.ema_decay) * new,
        state.ema, {name: params[name] for name in state.ema})
    updated = (params, updates.get('batch_stats', {}), ema, opt_state)
    current = (state.params, state.batch_stats, state.ema, state.opt_state)
    params, batch_stats, ema, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), updated, current)
    new_state = state.replace(
        step=state.step + 1, params=params, batch_stats=batch_stats, ema=ema,
        opt_state=opt_state, skipped=state.skipped + ~finite)
    metrics = {
        'loss': terms.total,
        **{f'loss_{name}': value for name, value in terms.parts.items()},
        **terms.diagnostics,
        'grad_norm': grad_norm,
        'lr': schedule(state.step - state.skipped),  # as the optimizer counts
        'skipped_steps': new_state.skipped,
    }
    return new_state, metrics

  def train_step(state, batch, stage):
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for `mesh.keep_split`
      return change(state, batch, stage)

  return jax.jit(
      train_step,
      donate_argnums=0,
      in_shardings=(placed, rows, everywhere),
      out_shardings=(placed, everywhere),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepFlops:
  """Model FLOPs of a step over all devices: forward and backward, nothing computed twice.

  Attributes:
    base: of every step.
    teacher: of the EMA teacher's pass, in stages that ask it.
    short_text: of the second pass through the text tower, in steps that contrast short texts.
  """

  base: int
  teacher: int = 0
  short_text: int = 0

  def mean(self, stage: shapes.StageValues) -> float:
    """Of the steps of a stage, on average."""
    return (self.base + self.teacher * bool(_asks_teacher(stage))
            + self.short_text * float(stage.short_text_prob))

  @property
  def dearest(self) -> int:
    """Of a step that does all there is."""
    return self.base + self.teacher + self.short_text


def model_flops(
    model: plan_model.PlanModel, optimizer: optax.GradientTransformation, *,
    config: config_lib.Config, mesh: jax.sharding.Mesh,
) -> StepFlops:
  """What a step costs, counted from the traced program."""
  plain = dataclasses.replace(
      config,
      model=dataclasses.replace(config.model, remat=config_lib.Remat.NONE),
      objective=dataclasses.replace(
          config.objective, algorithm=config_lib.Algorithm.REFERENCE),
      train=dataclasses.replace(config.train, chunks=1))
  model = dataclasses.replace(model, settings=plain.model, parts=1)
  state = jax.eval_shape(lambda: init_state(model, optimizer, config=plain))
  batch = jax.eval_shape(lambda: empty_batch(config.data, size=config.train.batch_size))
  stage = stages.schedule(config.stages, total_steps=config.train.steps).values(0)
  step = make_train_step(model, optimizer, config=plain, mesh=mesh)
  base = flops.count(step, state, batch, stage, branch=min)  # what a stage may skip is in branches
  teacher = 0
  if _uses_ema(config.objective):
    teacher = flops.count(
        lambda params, batch_stats, batch: model.apply(
            {'params': params, 'batch_stats': batch_stats}, batch, train=False),
        state.params, state.batch_stats, batch)
  everything = flops.count(step, state, batch, stage)
  return StepFlops(base=base, teacher=teacher, short_text=everything - base - teacher)


def _of_parts(towers: Callable[..., Any], key: jax.Array, *inputs: Any, chunks: int) -> Any:
  """`towers(key, *inputs)` part by part, with a key for each.

  So the activations of one part are in memory and the features of all, and the losses see
  the whole batch: gradients are those of the plain step, whatever the losses contrast.
  """
  if chunks == 1:
    return towers(key, *inputs)
  return in_parts.joined(in_parts.run(
      lambda part, *inputs: towers(jax.random.fold_in(key, part), *inputs), *inputs, parts=chunks))


def _baseline_loss(outputs, *, config, mesh) -> shapes.Terms:
  match config.objective.name:
    case config_lib.ObjectiveName.CONVIRT:
      return convirt.convirt_loss(outputs)
    case config_lib.ObjectiveName.SPARC:
      return sparc.sparc_loss(outputs)
    case config_lib.ObjectiveName.GLORIA:
      return gloria.gloria_loss(outputs, settings=config.objective, mesh=mesh)
    case config_lib.ObjectiveName.MGCA:
      return mgca.mgca_loss(outputs, renormalise=config.model.image not in vit.VARIANTS)


def _asks_teacher(stage: shapes.StageValues) -> jax.Array:
  return (stage.refine_weight > 0) | (stage.reliability > 0)


def _uses_ema(settings: config_lib.Objective) -> bool:
  return (settings.name == config_lib.ObjectiveName.PLAN
          and settings.teacher == config_lib.Teacher.EMA)
