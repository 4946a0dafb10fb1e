"""Checkpoints to PyTorch and Hugging Face, and back."""
