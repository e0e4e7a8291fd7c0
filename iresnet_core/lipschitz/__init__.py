"""Spectral norms from below and certified Lipschitz bounds from above, and weights kept below their caps."""
