"""How commands print: JSON for programs, tables for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from lmsmith.core.files import finite


def print_json(value: Mapping[str, object]) -> None:
    """One JSON object on standard output; NaN and infinity are null."""
    json.dump(finite(value), sys.stdout, ensure_ascii=False, indent=2)
    sys.stdout.write("\n")
    sys.stdout.flush()
