"""Records of every corpus with reports train: a step on each, all with one compiled program."""

import jax
import numpy as np

import corpus_runs as corpus
from plan_jax import mesh as mesh_lib
from plan_jax import optim
from plan_jax import stages
from plan_jax import step as step_lib
from plan_jax.data import corpora
from plan_jax.data import pipeline
from plan_jax.data import records
from plan_jax.data import tokenize
from plan_jax.data.corpora import base
import tiny

_BATCH = 4


def test_every_corpus_with_reports_trains(tmp_path):
  names = [name for name, found in corpora.CORPORA.items() if found.texts is not base.Texts.NONE]
  assert len(names) == 6
  for name in names:
    (tmp_path / name).mkdir()
    corpus.made(name, tmp_path / name)
  settings = tiny.config(train={'batch_size': _BATCH}, objective={'name': 'convirt'})
  vocabulary = tokenize.read_vocabulary(records.vocabulary_path(tmp_path / 'mimic_cxr/out'))
  tokenizer = tokenize.Tokenizer(
      vocabulary, max_pieces=settings.data.max_pieces, max_words=settings.data.max_words)
  mesh = mesh_lib.make_mesh(jax.devices()[:1])
  model = step_lib.build_model(settings, vocab_size=len(vocabulary))
  optimizer = optim.make_optimizer(settings.optim, total_steps=settings.train.steps)
  state = jax.device_put(
      tiny.random_state(model, optimizer, settings=settings),
      step_lib.state_shardings(model, optimizer, config=settings, mesh=mesh))
  train_step = step_lib.make_train_step(model, optimizer, config=settings, mesh=mesh)
  stage = stages.schedule(settings.stages, total_steps=settings.train.steps).values(0)
  losses = {}
  for name in names:
    batch = next(pipeline.batches(
        records.Records(tmp_path / name / 'out', 'train'), tokenizer=tokenizer,
        settings=settings.data, batch_size=_BATCH, seed=0, start_step=0))
    assert (batch.word_form >= 0).sum(axis=1).min() > 0, name  # no report is empty
    state, metrics = train_step(state, jax.device_put(batch, mesh_lib.split(mesh)), stage)
    losses[name] = float(metrics['loss'])
  assert np.isfinite(list(losses.values())).all() and len(set(losses.values())) == 6, losses
  assert int(state.skipped) == 0
