"""The commands of `iresnet`, one file each, and what they print and draw."""

__all__ = ["USAGE_ERROR"]

USAGE_ERROR = 2  # the exit status for a command that cannot be carried out as it was given
