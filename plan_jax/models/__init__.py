"""Image and text towers, and the two-tower model built from them."""
