"""``python -m skerry``."""

import sys
from pathlib import Path

# `-m` puts the folder at hand first: what lies there, a user's own ``compiler`` package say, is not the command's.
if Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
    del sys.path[0]

from skerry.main import main

if __name__ == "__main__":
    sys.exit(main())
