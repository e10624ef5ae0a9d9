"""Names of everything that this package stores in MLflow besides metrics, and what each holds.

Runs, models and versions in users' stores carry these names: their spelling never changes.
"""

from __future__ import annotations

# --- What a run did. Runs of all stages; registered versions carry those of the run that made them.

# The stage: pretrain, adapt, evaluate, embed, inspect, main, tune, trial, study, import or export.
STAGE = "hpt.stage"
# The datasets that the model learned from, oldest first, separated by " > ".
CHAIN = "hpt.chain"
# Address of the model that the stage started from or evaluated; absent if it started from random or imported weights.
PARENT_MODEL = "hpt.parent_model"
# What the first stage of the chain started from: RANDOM weights, or PUBLISHED ones; absent on imports, which are
# published, and on models of earlier versions.
ORIGIN = "hpt.origin"
RANDOM, PUBLISHED = "random", "published"
# DELTA on versions and milestones that keep only their difference from PARENT_MODEL; absent on whole ones.
STORE = "hpt.store"
WHOLE, DELTA = "whole", "delta"
# The self-supervised method of the stage that made that model, if it is known.
PARENT_METHOD = "hpt.parent_method"
# Address of the registered version that the run made.
MODEL = "hpt.model"
# Digest of the dataset that the run learned from or evaluated on.
DATASET_DIGEST = "hpt.dataset_digest"
# The dataset's labels, separated by commas, if an image can have several.
LABELS = "hpt.labels"
# What the user should know about the run, sentences separated by "; ".
WARNING = "hpt.warning"

# --- Trainings.

# The method of self-supervised learning, such as moco.
METHOD = "hpt.method"
# Which parameters learn, as in `adapt`.
UPDATE = "hpt.update"
# The augmentations in use, separated by commas, or none; of a search, its best subset so far.
AUGMENT = "hpt.augment"
# Strengths of augmentations that are not the default.
STRENGTHS = "hpt.strengths"
# The step from which the run was last resumed.
RESUMED_AT = "hpt.resumed_at"

# --- Evaluations.

# The protocol: fast, paper or finetune.
PROTOCOL = "hpt.protocol"
# Name of the primary metric: test/accuracy or test/auroc. Also on promoted versions.
METRIC = "hpt.metric"
# Digest of the set of test images. Also on promoted versions.
TEST_DIGEST = "hpt.test_digest"
# Version of `data.contents` that told the test images apart.
CONTENTS = "hpt.contents"
# Address of the classifier that the evaluation registered.
CLASSIFIER = "hpt.classifier"
# On a classifier's version: id of the evaluation that it came from.
EVALUATION = "hpt.evaluation"

# --- Imported weights.

# The file that was imported, its SHA-256, and its format.
WEIGHTS = "hpt.weights"
WEIGHTS_SHA256 = "hpt.weights_sha256"
WEIGHTS_FORMAT = "hpt.weights_format"

# --- Searches (tune), their trials, and the paper's studies.

# Name of the search that a trial belongs to; of a run of stage study, name of the paper's study.
STUDY = "hpt.study"
# Number of the trial in its search.
TRIAL = "hpt.trial"
# running, interrupted, complete, pruned or failed.
TRIAL_STATE = "hpt.trial_state"
# Why a trial was pruned, interrupted or failed.
REASON = "hpt.reason"
# true if the search trained on with its winner.
ADAPTED = "hpt.adapted"
# The machine that a study ran on.
MACHINE = "hpt.machine"

# --- What lets the same command resume a run or reuse its result.

# 16 hexadecimal digits of everything that decides the result, and the fields behind them as JSON.
FINGERPRINT = "hpt.fingerprint"
IDENTITY = "hpt.identity"
# The command that resumes the run.
CONTINUE = "hpt.continue"
# Of a run that `mlflow run` made, but whose command resumed another: id of that one.
CONTINUES = "hpt.continues"
# Random: finds a run whose creation the server did not confirm.
CREATION_ID = "hpt.creation_id"
# The machine whose process writes the run, and when it last did so, in seconds since 1970.
HOST = "hpt.host"
HEARTBEAT = "hpt.heartbeat"

# --- Promoted versions.

# Address of the version that this one, which stands alone or is whole, was made from.
COPY_OF = "hpt.copy_of"
# When the version was promoted, and by whom (USER@HOST).
PROMOTED = "hpt.promoted"
PROMOTED_BY = "hpt.promoted_by"
# Addresses of all models behind the version and its own, oldest first, separated by " > ".
LINEAGE = "hpt.lineage"
# Value of the decisive metric, its 95% interval, digest of the dataset that it was measured on, id of the evaluation.
VALUE = "hpt.value"
INTERVAL = "hpt.interval"
TEST_DATASET_DIGEST = "hpt.test_dataset_digest"
DECISIVE_EVALUATION = "hpt.decisive_evaluation"
# Who promoted the version against the comparison, when and why.
FORCED = "hpt.forced"
# On a registered model: hpt.promotion.ALIAS.TIME holds one move of an alias as JSON.
PROMOTION_PREFIX = "hpt.promotion."

# --- MLflow's own tags.

# Id of the run around this one.
PARENT_RUN = "mlflow.parentRunId"
# The description, in Markdown.
DESCRIPTION = "mlflow.note.content"
# On a LoggedModel: its registered versions, as JSON.
MODEL_VERSIONS = "mlflow.modelVersions"
# Artifacts that the UI shows as tables, as JSON.
LOGGED_TABLES = "mlflow.loggedArtifacts"
# Whether there are pictures on the step axis.
LOGGED_IMAGES = "mlflow.loggedImages"
# What a dataset is for: training, evaluation or inference.
DATA_CONTEXT = "mlflow.data.context"
# Of a run that `mlflow run` made: its entry point, environment manager and project.
PROJECT_ENTRY_POINT = "mlflow.project.entryPoint"
PROJECT_ENVIRONMENT = "mlflow.project.env"
PROJECT_SOURCE = "mlflow.source.name"

# --- Parameters, models and artifacts of a run.

# Prefix of settings as they were resolved; without it, `mlflow run` logs them as they were written.
SETTINGS_PREFIX = "settings/"
# A milestone is a LoggedModel step-N; an evaluation's model is called classifier.
MILESTONE_PREFIX = "step-"
CLASSIFIER_NAME = "classifier"
# A backbone NAME has its classifiers in the registered model NAME-classifier.
CLASSIFIER_SUFFIX = "-classifier"
# Two training states, written by turns.
STATE_FOLDERS = ("training_state/0", "training_state/1")
# Contents of the images that a training saw (`models.seen_images`).
SEEN_IMAGES_FILE = "seen_images.safetensors"
# An evaluation's probabilities for the test images (`models.predictions`).
PREDICTIONS_FILE = "predictions.safetensors"
# In a description that a registration sets: becomes the address of the new version.
VERSION_PLACEHOLDER = "{{registered version}}"


def milestone_name(step: int) -> str:
    """Name of the LoggedModel of a step."""
    return f"{MILESTONE_PREFIX}{step}"


def setting_param(name: str) -> str:
    """The parameter that holds a resolved setting."""
    return f"{SETTINGS_PREFIX}{name}"
