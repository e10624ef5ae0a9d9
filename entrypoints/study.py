"""The entry point `study` of MLproject."""

import sys

from hpt_mlflow.cli import hpt

hpt(["study", *sys.argv[1:]])
