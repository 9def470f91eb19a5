"""``python -m rest_fast.cli``: the command line."""

import sys

from rest_fast.cli import main

if __name__ == "__main__":
    sys.exit(main())
