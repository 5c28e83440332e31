"""``python -m edgert`` is the command `edgert`: how one process starts another of the same installation."""

import sys

from edgert.cli import main

sys.exit(main())
