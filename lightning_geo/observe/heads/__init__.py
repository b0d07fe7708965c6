"""Single heads: their parameters, the gradients of their outputs, and scaling them."""
