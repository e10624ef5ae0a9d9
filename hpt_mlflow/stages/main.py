"""Main: pretrain, adapt and evaluate in a row, as nested runs of one run."""

from __future__ import annotations

from dataclasses import asdict

from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError
from hpt_mlflow.group import joins_others
from hpt_mlflow.options import passed_on
from hpt_mlflow.settings import EvaluateSettings, MainSettings, PretrainSettings
from hpt_mlflow.stages.adapt import adapt
from hpt_mlflow.stages.evaluate import evaluate
from hpt_mlflow.stages.identify import identify
from hpt_mlflow.stages.pretrain import pretrain
from hpt_mlflow.stages.result import StageResult, result_of
from hpt_mlflow.stages.signature import takes
from hpt_mlflow.tracking import tags as tag
from hpt_mlflow.tracking.connection import connect
from hpt_mlflow.tracking.runs.nesting import current_run_id
from hpt_mlflow.tracking.runs.resume import earlier_run
from hpt_mlflow.tracking.runs.stage_run import stage_run


@takes(MainSettings)
def main(chosen: MainSettings) -> StageResult:
    """Train on base, then on source where there is one, then on target; evaluate on target where it has labels.

    Raises:
        HptError: something is wrong that the user can mend; before any long work where that is possible.
    """
    if joins_others():
        raise HptError(
            "main starts its processes itself",
            "use --nproc without torchrun and WORLD_SIZE, or run pretrain and adapt one by one",
        )
    addresses = [address for address in (chosen.base, chosen.source, chosen.target) if address]
    datasets = [open_dataset(address, chosen.root) for address in addresses]
    connect()
    training = passed_on(chosen, PretrainSettings)

    identity = identify("main", chosen, datasets)
    with earlier_run(identity, chosen.resume, current_run_id()) as earlier:
        if earlier and earlier.finished:
            return result_of(earlier)
        with stage_run(f"main {' > '.join(dataset.name for dataset in datasets)}", identity, earlier) as run:
            if earlier is None:
                run.tags({tag.STAGE: "main", tag.CHAIN: " > ".join(dataset.name for dataset in datasets)})
                run.params(asdict(chosen))
            # Stages that this run has finished before are reused; an interrupted one is resumed.
            result = pretrain(data=addresses[0], steps=chosen.base_steps, alias="base", **training)
            for address, alias in zip(addresses[1:], ("source", "target")[-len(addresses) + 1 :], strict=True):
                result = adapt(data=address, parent=result.model_uri, steps=chosen.adapt_steps, alias=alias, **training)
            if datasets[-1].labels is not None:
                result = evaluate(data=addresses[-1], model=result.model_uri, **passed_on(chosen, EvaluateSettings))
            run.metrics(result.metrics, 0)
            run.tags({tag.MODEL: result.model_uri})
            return StageResult(run.run_id, result.model_uri, result.chain, result.metrics)
