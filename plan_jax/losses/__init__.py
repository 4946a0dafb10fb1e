"""Pure loss functions: arrays in, fp32 arrays out. Equation numbers: docs/method.md."""
