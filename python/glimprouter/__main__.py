"""``python -m glimprouter``: the command line."""

import sys

from glimprouter.cli.main import main

sys.exit(main())
