"""The commands of `iresnet`, one file each, and what they print and draw."""
