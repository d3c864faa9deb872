"""`gossamer bench weights`, for who looks for benchmarks here; the options are the same."""

import sys

from gossamer.cli import main

if __name__ == "__main__":
    sys.argv[1:1] = ["bench", "weights"]
    main()
