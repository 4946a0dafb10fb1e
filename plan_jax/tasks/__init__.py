"""Evaluation tasks: a model and records in, figures of `evals/` out."""
