"""The entry point `evaluate` of MLproject."""

import sys

from hpt_mlflow.cli import hpt

hpt(["evaluate", *sys.argv[1:]])
