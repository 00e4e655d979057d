"""The same as `metricid embed`, from a checkout."""

import sys

from metricid.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["embed", *sys.argv[1:]]))
