"""`python -m ltde`, the same as the command `ltde`."""

import sys

from ltde.cli import main

if __name__ == "__main__":
    sys.exit(main())
