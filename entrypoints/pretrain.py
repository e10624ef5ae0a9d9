"""The entry point `pretrain` of MLproject."""

import sys

from hpt_mlflow.cli import hpt

hpt(["pretrain", *sys.argv[1:]])
