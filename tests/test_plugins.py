import pytest

from hpt_mlflow.data.sources import SOURCES, register_source
from hpt_mlflow.evaluation.objectives import OBJECTIVES, register_objective
from hpt_mlflow.evaluation.protocols import PROTOCOLS, register_protocol
from hpt_mlflow.experiments import STUDIES, register_study
from hpt_mlflow.methods import METHODS, register_method
from hpt_mlflow.plugins import add_to
from hpt_mlflow.stages import STAGES, register_stage


@pytest.mark.parametrize(
    ("kind", "registry", "register"),
    [
        ("method", METHODS, lambda: register_method("moco", METHODS["simclr"])),
        ("protocol", PROTOCOLS, lambda: register_protocol("fast", PROTOCOLS["paper"])),
        ("objective", OBJECTIVES, lambda: register_objective("knn", OBJECTIVES["probe"])),
        ("study", STUDIES, lambda: register_study("sequential", "elsewhere:Study", "something else")),
        ("stage", STAGES, lambda: register_stage("adapt", STAGES["pretrain"].settings, "elsewhere:adapt")),
        ("dataset reader", SOURCES, lambda: register_source("csv", lambda rest, root: None)),
    ],
)
def test_a_name_that_is_taken_is_refused(kind, registry, register):
    before = dict(registry)
    with pytest.raises(ValueError, match=f"^there is already another {kind} named "):
        register()
    assert registry == before


def test_the_same_may_be_registered_again_also_a_function_that_was_defined_anew():
    def define():
        def build():
            return None

        return build

    registry = {}
    for value in ("module:name", "module:name"):
        add_to(registry, "study", "mine", value)
    functions = [define(), define()]
    for function in functions:
        add_to(registry, "reader", "yours", function)
    assert registry == {"mine": "module:name", "yours": functions[1]}
