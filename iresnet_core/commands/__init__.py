"""The commands of `iresnet`, one file each, and what they print and draw."""

__all__ = ["INTERRUPTED", "USAGE_ERROR"]

INTERRUPTED = 130  # by Ctrl-C, as shells have it
USAGE_ERROR = 2  # the exit status for a command that cannot be carried out as it was given
