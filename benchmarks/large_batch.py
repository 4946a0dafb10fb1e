r"""A large batch in little memory: PLAN's step in parts, of equal gradients (GradCache form).

  python benchmarks/large_batch.py

One process, one device. `chunks` parts of the batch go through the towers one after the
other; the contrasts see all pairs. That the step is equal to the plain one is shown by
tests/test_step_memory.py. Memory is what the process holds at most from its start, interpreter
and compiling included; before the step it gives back what compiling freed, as training does.
Where the compiler plans more than the machine has (state, batch and temporaries), its figure
stands alone.
"""

import dataclasses

import numpy as np

import measure

_VOCABULARY = 28996


def cases(quick: bool) -> list[measure.Case]:
  if quick:
    sizes = {'image': 'vit_ti16', 'text': 'bert_tiny', 'image_size': 32, 'pieces': 12, 'batch': 8}
    return [{**sizes, 'teacher': 'self', 'chunks': chunks} for chunks in (1, 4)]
  sizes = {'image': 'vit_s16', 'image_size': 224, 'pieces': 97, 'batch': 1024, 'text': 'minilm_l6'}
  return [{**sizes, 'teacher': 'ema', 'chunks': chunks} for chunks in (1, 256)]


def run(case: measure.Case) -> measure.Result:
  import jax

  from plan_jax import config as config_lib
  from plan_jax import mesh as mesh_lib
  from plan_jax import optim
  from plan_jax import processes
  from plan_jax import stages
  from plan_jax import step as step_lib

  config = config_lib.resolve({
      'objective': {'teacher': case['teacher']},
      'data': {'image_size': case['image_size'], 'max_pieces': case['pieces'], 'max_words': 64},
      'model': {'image': case['image'], 'text': case['text'], 'remat': 'blocks'},
      'train': {'batch_size': case['batch'], 'steps': 100, 'chunks': case['chunks']}})
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  model = step_lib.build_model(config, vocab_size=_VOCABULARY)
  optimizer = optim.make_optimizer(config.optim, total_steps=config.train.steps)
  train_step = step_lib.make_train_step(model, optimizer, config=config, mesh=mesh)
  stage = stages.schedule(config.stages, total_steps=config.train.steps).values(99)
  batch = _batch(case, config)
  begin = jax.jit(lambda: step_lib.init_state(model, optimizer, config=config))
  compiled = train_step.lower(jax.eval_shape(begin), batch, stage).compile()
  memory = compiled.memory_analysis()
  planned = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 2**20
  if planned > 0.9 * measure.free_mib():
    return {'skipped': 'does not fit', 'planned_mib': planned}
  state = jax.block_until_ready(begin())
  processes.trim_heap()
  resident = measure.resident_mib()
  seconds, = measure.timed(
      lambda: float(compiled(state, batch, stage)[1]['loss']), least=1, seconds=0)
  return {'planned_mib': planned, 'resident_mib': resident, 'seconds': seconds,
          'peak_mib': measure.peak_mib()}


def _batch(case, config):
  """Random pictures; reports of full length, a piece a word."""
  from plan_jax import step as step_lib

  rng = np.random.default_rng(0)
  size, batch, length = case['image_size'], case['batch'], case['pieces']
  pieces = rng.integers(5, _VOCABULARY, (batch, length)).astype(np.int32)
  words = min(length - 2, config.data.max_words)
  piece_word = np.full((batch, length), -1, np.int32)
  piece_word[:, 1:words + 1] = np.arange(words)
  form = np.full((batch, config.data.max_words), -1, np.int32)
  form[:, :words] = pieces[:, 1:words + 1]
  return dataclasses.replace(
      step_lib.empty_batch(config.data, size=batch), pieces=pieces, piece_word=piece_word,
      word_form=form, image=rng.integers(0, 256, (batch, size, size), np.uint8),
      extent=np.tile(np.array([0, 0, size, size], np.int32), (batch, 1)))


def show(found) -> str:
  lines = ['| teacher | parts | planned by the compiler, MiB | held before the step, MiB | '
           'held at most, MiB | seconds |', '|---|---|---|---|---|---|']
  for case, results in found:
    lines.append('| ' + ' | '.join([case['teacher'], str(case['chunks']), *(
        measure.spread(results, key)
        for key in ('planned_mib', 'resident_mib', 'peak_mib', 'seconds'))]) + ' |')
  return '\n'.join(lines)


if __name__ == '__main__':
  measure.main(__file__, __doc__, cases=cases, measure=run, show=show, rounds=1)
