"""The main module of every Bazel test: pytest on the files that the arguments name."""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[1:]))
