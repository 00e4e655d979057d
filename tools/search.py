"""The same as `metricid search`, from a checkout."""

import sys

from metricid.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["search", *sys.argv[1:]]))
