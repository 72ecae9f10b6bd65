"""``python -m fastfss``."""

from __future__ import annotations

import sys

from fastfss.cli import main

if __name__ == "__main__":
    sys.exit(main())
