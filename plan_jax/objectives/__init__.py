"""Training objectives: which losses, put together how, make a method."""
