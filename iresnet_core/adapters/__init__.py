"""Layers for PyTorch and Keras over the core."""
