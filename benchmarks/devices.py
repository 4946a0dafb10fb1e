r"""One to eight devices, as many pairs each: memory of a device, and bytes that it sends.

  python benchmarks/devices.py

loss  term (9), GLoRIA's form, forward and backward, over the global batch, 32 pairs a device:
      `ring`, in which the words travel, and `blockwise`, for which they are gathered.
step  PLAN's training step, ViT-S/16 + BERT-base, 8 pairs a device, parameters `replicated`
      or split (`fsdp`).
The devices are those that JAX makes of this host's CPU. Nothing is run: memory is the
compiler's figure, bytes are read from the compiled program (`plan_jax.hlo`). Times would
say nothing, as all devices share the same cores.
"""

import os
import pathlib

import measure

_WORDS, _PIXELS, _DIM = 97, 196, 128
_VOCABULARY = 28996


def cases(quick: bool) -> list[measure.Case]:
  counts, own = ((1, 2), {'loss': 2, 'step': 2}) if quick else (
      (1, 2, 4, 8), {'loss': 32, 'step': 8})
  towers = {'image': 'vit_ti16', 'text': 'bert_tiny', 'image_size': 32, 'pieces': 12} if quick else {
      'image': 'vit_s16', 'text': 'bert_base', 'image_size': 224, 'pieces': 97}
  return [
      *({'what': 'loss', 'how': how, 'devices': n, 'pairs': own['loss']}
        for how in ('ring', 'blockwise') for n in counts),
      *({'what': 'step', 'how': how, 'devices': n, 'pairs': own['step'], **towers}
        for how in ('replicated', 'fsdp') for n in counts)]


def run(case: measure.Case) -> measure.Result:
  # JAX reads it when it starts, which in a new process is now.
  os.environ.setdefault(
      'XLA_FLAGS', f'--xla_force_host_platform_device_count={case["devices"]}')
  import jax

  from plan_jax import hlo
  from plan_jax import mesh as mesh_lib

  mesh = mesh_lib.make_mesh(jax.devices()[:case['devices']])
  if mesh.size != case['devices']:
    raise RuntimeError(f'{mesh.size} devices, wanted {case["devices"]}: is XLA_FLAGS set?')
  compiled = {'loss': _loss, 'step': _step}[case['what']](case, mesh)
  memory = compiled.memory_analysis()
  sent = {kind: each.bytes / 2**20 for kind, each in hlo.cost(compiled.as_text()).collectives.items()}
  return {'held_mib': memory.argument_size_in_bytes / 2**20,
          'temporary_mib': memory.temp_size_in_bytes / 2**20,
          'sent_mib': sum(sent.values()), 'sent_by_kind': sent}


def _loss(case, mesh):
  import functools

  import jax
  import jax.numpy as jnp

  from plan_jax import config
  from plan_jax import mesh as mesh_lib
  from plan_jax.losses import cross_pair
  from plan_jax.objectives import gloria

  batch, split = case['pairs'] * case['devices'], mesh_lib.split(mesh)
  shape = functools.partial(jax.ShapeDtypeStruct, sharding=split)

  @functools.partial(jax.jit, out_shardings=(split, split))
  def gradients(words, pixels, is_word, is_pixel):
    return jax.grad(lambda *both: cross_pair.batch_loss(
        *both, is_word=is_word, is_pixel=is_pixel, look=gloria.LOOK, is_global=True, mib=8,
        mesh=mesh, algorithm=config.Algorithm(case['how'])), (0, 1))(words, pixels)

  return gradients.lower(
      shape((batch, _WORDS, _DIM), jnp.float32), shape((batch, _PIXELS, _DIM), jnp.float32),
      shape((batch, _WORDS), bool), shape((batch, _PIXELS), bool)).compile()


def _step(case, mesh):
  import jax

  from plan_jax import config as config_lib
  from plan_jax import optim
  from plan_jax import stages
  from plan_jax import step as step_lib

  config = config_lib.resolve({
      'data': {'image_size': case['image_size'], 'max_pieces': case['pieces'], 'max_words': 64},
      'model': {'image': case['image'], 'text': case['text'], 'remat': 'blocks'},
      'objective': {'teacher': 'self'},
      'train': {'batch_size': case['pairs'] * case['devices'], 'steps': 100,
                'sharding': case['how']}})
  model = step_lib.build_model(config, vocab_size=_VOCABULARY)
  optimizer = optim.make_optimizer(config.optim, total_steps=config.train.steps)
  step = step_lib.make_train_step(model, optimizer, config=config, mesh=mesh)
  state = jax.eval_shape(lambda: step_lib.init_state(model, optimizer, config=config))
  batch = jax.eval_shape(
      lambda: step_lib.empty_batch(config.data, size=config.train.batch_size))
  stage = stages.schedule(config.stages, total_steps=config.train.steps).values(99)
  return step.lower(state, batch, stage).compile()


def show(found) -> str:
  lines = ['| what | how | devices | pairs | held by a device, MiB | beside it at most, MiB | '
           'sent by a device, MiB | of these |', '|---|---|---|---|---|---|---|---|']
  for case, results in found:
    kinds = ', '.join(f'{kind} {size:.1f}' for kind, size in sorted(
        results[0]['sent_by_kind'].items()))
    figures = (f'{measure.median(results, key):.1f}'
               for key in ('held_mib', 'temporary_mib', 'sent_mib'))
    lines.append('| ' + ' | '.join([
        case['what'], case['how'], str(case['devices']), str(case['pairs'] * case['devices']),
        *figures, kinds or 'nothing']) + ' |')
  return '\n'.join(lines)


def draw(found, path: pathlib.Path) -> None:
  from matplotlib import pyplot

  figure, grid = pyplot.subplots(2, 2, figsize=(9, 6), layout='constrained')
  for axes, (what, title) in zip(grid, (
      ('loss', 'word-pixel loss, forward and backward'), ('step', "PLAN's training step")), strict=True):
    for how, marker in zip(dict.fromkeys(case['how'] for case, _ in found if case['what'] == what), 'os'):
      of = [(case, results) for case, results in found if (case['what'], case['how']) == (what, how)]
      counts = [case['devices'] for case, _ in of]
      held, beside, sent = ([measure.median(results, key) for _, results in of]
                            for key in ('held_mib', 'temporary_mib', 'sent_mib'))
      axes[0].plot(counts, [sum(both) for both in zip(held, beside)], marker=marker, label=how)
      axes[1].plot(counts, sent, marker=marker, label=how)
    for axis, figures in zip(axes, ('memory of a device, MiB', 'sent by a device, MiB'), strict=True):
      axis.set(xlabel=f'devices, {of[0][0]["pairs"]} pairs each', ylabel=figures, title=title,
               xticks=counts, ylim=(0, None))
      axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
  figure.savefig(path, dpi=120)


if __name__ == '__main__':
  measure.main(__file__, __doc__, cases=cases, measure=run, show=show, draw=draw, rounds=1)
