"""What `iresnet validate` does: every method against exact SciPy answers, and every backend against NumPy."""
