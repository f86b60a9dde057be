"""`python -m anyorder`, which launchers of several processes want."""

import sys

from anyorder.cli import main

if __name__ == "__main__":
    sys.exit(main())
