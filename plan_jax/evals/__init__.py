"""Evaluation protocols: arrays in, frozen dataclasses of numbers out; no I/O."""
