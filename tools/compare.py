"""The same as `metricid compare`, from a checkout."""

import sys

from metricid.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
