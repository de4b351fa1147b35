"""`python -m lightrec`, the same as the console script."""

import sys

from lightrec.cli import main

if __name__ == "__main__":
    sys.exit(main())
