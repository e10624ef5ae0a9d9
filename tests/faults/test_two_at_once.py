"""Several trainings share a store that is not there yet, a model name, an alias and a cache."""

import pytest


@pytest.mark.slow
def test_trainings_that_start_together_each_register_a_version(workplace, fault):
    with fault("three trainings start at once on an empty store"):
        processes = [workplace.pretrain(steps=6, seed=seed, alias="base") for seed in range(3)]
        assert [process.wait(180) for process in processes] == [0, 0, 0]
    runs = workplace.runs()
    assert {run.info.status for run in runs} == {"FINISHED"}
    versions = {str(version.version): version for version in workplace.client.search_model_versions("name='hpt'")}
    assert set(versions) == {"1", "2", "3"}
    assert {run.data.tags["hpt.model"] for run in runs} == {f"models:/hpt/{version}" for version in versions}
    assert {versions[run.data.tags["hpt.model"][-1]].run_id for run in runs} == {run.info.run_id for run in runs}
    assert workplace.client.get_model_version_by_alias("hpt", "base").version in {1, 2, 3}
    assert len(list((workplace.folder / "cache" / "channel-statistics").glob("*"))) == 1


@pytest.mark.slow
def test_the_same_command_twice_at_once_makes_two_runs(workplace, fault):
    with fault("the same command twice at once"):
        first = workplace.pretrain(steps=40)
        second = workplace.pretrain(steps=40)
        assert [process.wait(180) for process in (first, second)] == [0, 0]
    one, other = workplace.runs()
    assert one.info.status == other.info.status == "FINISHED"
    assert workplace.loss_curve(one) == workplace.loss_curve(other)
    assert len(workplace.loss_curve(one)) == 40
