"""The entry point `tune` of MLproject."""

import sys

from hpt_mlflow.cli import hpt

hpt(["tune", *sys.argv[1:]])
