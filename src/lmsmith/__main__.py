"""``python -m lmsmith``: the same as the ``lmsmith`` command."""

from __future__ import annotations

import sys

from lmsmith.cli import main

if __name__ == "__main__":
    sys.exit(main())
