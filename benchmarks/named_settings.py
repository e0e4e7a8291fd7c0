"""Settings of a training in the arguments of a benchmark, as NAME=VALUE."""

__all__ = ["setting"]


def setting(text):
    """Return the name and the value of a setting."""
    name, _, value = text.partition("=")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            continue
    return name, value
