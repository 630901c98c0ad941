"""``python -m skerry``."""

import sys

from skerry.main import main

if __name__ == "__main__":
    sys.exit(main())
