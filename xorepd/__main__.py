"""`python -m xorepd` is `xorepd`."""

from xorepd.cli import main

if __name__ == "__main__":
    main()
