"""``python -m iresnet_core``: the command `iresnet`."""

from iresnet_core.cli import main

if __name__ == "__main__":
    main()
