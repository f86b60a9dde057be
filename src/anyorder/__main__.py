"""`python -m anyorder`, which launchers of several processes want."""

import sys

from anyorder.cli import main

sys.exit(main())
