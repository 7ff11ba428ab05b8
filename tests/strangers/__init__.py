"""The lab as software sees it that is not ours, unmodified and over real sockets.

Where a program is missing its tests are skipped; `make strangers` installs them all.
"""
