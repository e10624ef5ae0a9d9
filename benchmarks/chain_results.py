"""The paper's methods on a target, each a chain of `mlflow run`, over several seeds: the table of the README.

    make results                                            # clipart > noto > twemoji, about an hour on two cores
    python benchmarks/chain_results.py --base A --source B --target C

Base:    pretrain on base, then only batch-norm statistics on the target.
Target:  pretrain on the target.
HPT:     pretrain on base, adapt to source, adapt to the target; HPT-BN: there only BatchNorm layers learn.
All of them take the same number of steps on the target. Each seed has a split of its own, the same along its chains.
What is finished in the store is not run again, so the command may be stopped and repeated.
"""

from __future__ import annotations

import logging
import statistics
from pathlib import Path

import click
import mlflow
from mlflow.entities import Run

from hpt_mlflow.experiments.results import estimate

PROJECT = Path(__file__).resolve().parents[1]
DATA = PROJECT.parent / "shared" / "data"
FIGURES = {"linear": "test/accuracy", "balanced": "test/balanced_accuracy", "20-NN": "knn/test_accuracy"}
RANDOM = {"linear": "random/accuracy", "balanced": "random/balanced_accuracy", "20-NN": "random/knn_accuracy"}


@click.command()
@click.option("--base", default=str(DATA / "clipart"), show_default=True)
@click.option("--source", default=str(DATA / "noto"), show_default=True)
@click.option("--target", default=str(DATA / "twemoji"), show_default=True)
@click.option("--base-steps", default=600, show_default=True)
@click.option("--source-steps", default=200, show_default=True)
@click.option("--target-steps", default=200, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--experiment", default="chain-results", show_default=True)
def main(
    base: str,
    source: str,
    target: str,
    base_steps: int,
    source_steps: int,
    target_steps: int,
    seeds: int,
    experiment: str,
) -> None:
    """Run what is not there yet, and print the table."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    mlflow.set_experiment(experiment)
    figures: dict[str, list[dict[str, float]]] = {}
    for seed in range(seeds):
        shared = {"seed": seed, "split_seed": seed}

        def train(entry_point: str, name: str, shared: dict[str, int] = shared, **parameters: object) -> str:
            named = {"model_name": f"{experiment}-{name}", "milestones": "100%", "checkpoint_every": 0}
            return finished_run(experiment, entry_point, shared | named | parameters).data.tags["hpt.model"]

        base_model = train("pretrain", "base", data=base, steps=base_steps)
        source_model = train("adapt", "source", data=source, steps=source_steps, parent=base_model)
        on_target = {"data": target, "steps": target_steps}
        models = {
            "Base": train("adapt", "target-base", parent=base_model, update="bn-stats", **on_target),
            "Target": train("pretrain", "target", **on_target),
            "HPT": train("adapt", "target-hpt", parent=source_model, **on_target),
            "HPT-BN": train("adapt", "target-hpt-bn", parent=source_model, update="bn", **on_target),
        }
        for method, model in models.items():
            evaluation = finished_run(experiment, "evaluate", shared | {"data": target, "model": model}).data.metrics
            figures.setdefault(method, []).append({name: evaluation[key] for name, key in FIGURES.items()})
        figures.setdefault("random features", []).append({name: evaluation[key] for name, key in RANDOM.items()})
    print_table(figures)


def finished_run(experiment: str, entry_point: str, parameters: dict[str, object]) -> Run:
    """The finished run of an entry point with these parameters, started now if there is none."""
    values = {name: str(value) for name, value in parameters.items()}
    conditions = [f"params.`{name}` = '{value}'" for name, value in values.items()]
    conditions += ["status = 'FINISHED'", f"tags.`hpt.stage` = '{entry_point}'"]
    found = mlflow.search_runs(
        experiment_names=[experiment], filter_string=" and ".join(conditions), output_format="list", max_results=1
    )
    if found:
        return found[0]
    submitted = mlflow.projects.run(
        str(PROJECT), entry_point, parameters=values, experiment_name=experiment, env_manager="local"
    )
    return mlflow.get_run(submitted.run_id)


def print_table(figures: dict[str, list[dict[str, float]]]) -> None:
    """Mean and standard deviation of each method over the seeds, and its paired difference to random features."""
    print(f"| method | {' | '.join(FIGURES)} | linear, above random features |")
    print("|---|" + "---|" * (len(FIGURES) + 1))
    random = [values["linear"] for values in figures["random features"]]
    for method in ("random features", "Base", "Target", "HPT", "HPT-BN"):
        cells = []
        for name in FIGURES:
            values = [seed[name] for seed in figures[method]]
            cells.append(f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}")
        gains = [seed["linear"] - other for seed, other in zip(figures[method], random, strict=True)]
        cells.append("" if method == "random features" else interval(gains))
        print(f"| {method} | {' | '.join(cells)} |")


def interval(values: list[float]) -> str:
    """Mean and 95% confidence interval by Student's t."""
    found = estimate(values)
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


if __name__ == "__main__":
    main()
