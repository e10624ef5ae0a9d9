"""The entry point `adapt` of MLproject."""

import sys

from hpt_mlflow.cli import hpt

hpt(["adapt", *sys.argv[1:]])
