"""Linear layers and operators: dense matrices, convolutions, stacks and transposes, anything with products."""
