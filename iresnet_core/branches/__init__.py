"""Residual branches g: activations, their linearization at a batch, chains of layers, exact traces."""
