"""The same as `metricid demo`, from a checkout."""

import sys

from metricid.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["demo", *sys.argv[1:]]))
