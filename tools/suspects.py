"""The same as `metricid suspects`, from a checkout."""

import sys

from metricid.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["suspects", *sys.argv[1:]]))
