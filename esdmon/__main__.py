"""`python -m esdmon`."""

import sys

from esdmon.cli import main

sys.exit(main())
