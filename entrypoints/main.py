"""The entry point `main` of MLproject."""

import sys

from hpt_mlflow.cli import hpt

hpt(["main", *sys.argv[1:]])
