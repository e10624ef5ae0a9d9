"""A study from outside the package, as docs/extending.md shows it."""

from hpt_mlflow.experiments import register_study
from hpt_mlflow.experiments.base import Study
from hpt_mlflow.experiments.claims import compare
from hpt_mlflow.experiments.figure import by_condition

RATES = ("0.003", "0.03")


class LearningRate(Study):
    """HPT with two peak learning rates on the target."""

    name = "learning-rate"
    title = "Which learning rate HPT needs on the target"

    def evaluations(self, chains):
        for rate in RATES:
            training = chains.on_target("HPT", learning_rate=float(rate))
            yield "HPT", rate, chains.evaluated(training)

    def claims(self, results):
        low, high = RATES
        text = f"HPT better with a learning rate of {high} than of {low}"
        yield from compare(text, results.last("HPT", high), results.last("HPT", low))

    def figure(self, results):
        return by_condition(results, "peak learning rate on the target")


register_study("learning-rate", "learning_rate_study:LearningRate", "which learning rate HPT needs on the target")
