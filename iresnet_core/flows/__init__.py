"""Flows: residual blocks and the other layers, pure functions of arrays, and their composition."""
