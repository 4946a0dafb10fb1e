"""Heads trained on frozen features: arrays in, a trained head out; no I/O but progress."""
