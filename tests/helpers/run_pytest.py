"""The main module of all Bazel tests: runs pytest on the files named by the arguments."""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[1:]))
