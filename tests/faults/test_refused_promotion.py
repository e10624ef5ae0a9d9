"""Promotions that a registry refuses, before they begin or in the middle: nothing has changed then."""

import mlflow
import pytest
from mlflow.server import get_app_client
from mlflow.tracking import MlflowClient
from recorded import three_stages
from test_registry_behind_proxy import proxy

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.connection import use_servers
from hpt_mlflow.tracking.models.promotion import promote, roll_back

STAGES = [("pretrain", "cats", None), ("pretrain", "dogs", None)]
NAMES = ("hpt", "hpt-classifier")
ADMIN, PASSWORD = "admin", "a password of the tests"


@pytest.fixture
def models(server, empty_database):
    """The addresses of two versions, the second better, in the store of a server that is not started yet."""
    (_, workplace) = server
    yield three_stages(empty_database, workplace.folder, STAGES, (0.6, 0.7))[1]
    mlflow.set_tracking_uri(None)


def everything(client):
    """All that a promotion writes."""
    registered = [client.get_registered_model(name) for name in NAMES]
    versions = sorted(client.search_model_versions(), key=lambda version: (version.name, version.version))
    return [(model.name, model.aliases, model.tags) for model in registered], [
        (version.name, version.version, version.tags) for version in versions
    ]


@pytest.mark.slow
def test_a_refused_alias_leaves_nothing_behind(server, models):
    start_server, workplace = server
    start_server()
    direct, calls, refused = workplace.client, [], range(0)

    def before(method, path):
        is_alias = (method, path.rpartition("/")[2]) == ("POST", "alias")
        calls.extend([path] * is_alias)
        return is_alias and len(calls) in refused

    with proxy(int(workplace.tracking_uri.rpartition(":")[2]), before) as port:
        use_servers(*[f"http://127.0.0.1:{port}"] * 2)
        promote(models[0])
        champion = everything(direct)
        refused = range(100)
        for action in (
            lambda: promote(models[1]),
            lambda: promote(models[1], to="production", standalone=False),
            lambda: promote(models[1], alias="candidate"),
        ):
            with pytest.raises(HptError, match=r"alias: the registry \S+ refuses the alias (champion|candidate) of"):
                action()
            assert everything(direct) == champion

        # Two calls ask whether both aliases may move. Then the backbone's does, and the classifier's does not.
        def classifier_is_refused():
            calls.clear()
            return range(4, 5)

        refused = classifier_is_refused()
        with pytest.raises(HptError, match="cannot promote models:/hpt/2: .*Permission denied"):
            promote(models[1])
        # Both are set back.
        assert len(calls) == 6
        assert everything(direct) == champion

        refused = range(0)
        promote(models[1])
        better = everything(direct)
        assert better[0][0][1] == better[0][1][1] == {"champion": "2"}
        refused = classifier_is_refused()
        with pytest.raises(HptError, match="cannot restore the champion of hpt before: .*Permission denied"):
            roll_back("hpt")
        assert everything(direct) == better
        refused = classifier_is_refused()
        with pytest.raises(HptError, match="cannot promote models:/hpt/2: .*Permission denied"):
            promote(models[1], alias="first")
        assert everything(direct) == better


@pytest.mark.slow
def test_a_user_who_may_only_read_is_refused_and_one_who_may_edit_is_not(server, models, monkeypatch):
    pytest.importorskip("flask_wtf")
    start_server, workplace = server
    settings = workplace.folder / "auth.ini"
    settings.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{workplace.folder}/auth.db\n"
        f"admin_username = {ADMIN}\nadmin_password = {PASSWORD}\nauth_cache_ttl_seconds = 60\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    monkeypatch.setenv("MLFLOW_AUTH_CONFIG_PATH", str(settings))
    monkeypatch.setenv("MLFLOW_FLASK_SERVER_SECRET_KEY", "for the tests")
    start_server("--app-name", "basic-auth")

    def log_in(name):
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)

    use_servers(*[workplace.tracking_uri] * 2)
    log_in(ADMIN)
    permissions = get_app_client("basic-auth", tracking_uri=workplace.tracking_uri)
    permissions.create_user("ada", PASSWORD)
    for model in models:
        promote(model)
    champion = everything(MlflowClient())

    def refuses(name):
        for action in (lambda: roll_back("hpt"), lambda: promote(models[0], force=True, reason="faster")):
            with pytest.raises(
                HptError, match=f"model: {name} may not be written in the registry .*the user ada lacks"
            ):
                action()
        log_in(ADMIN)
        assert everything(MlflowClient()) == champion

    log_in("ada")
    refuses("hpt")
    permissions.grant_user_permission("ada", "registered_model", "hpt", "EDIT")
    log_in("ada")
    refuses("hpt-classifier")
    permissions.grant_user_permission("ada", "registered_model", "hpt-classifier", "EDIT")
    log_in("ada")
    assert roll_back("hpt").address == models[0]
    assert [MlflowClient().get_registered_model(name).aliases for name in NAMES] == [{"champion": "1"}] * 2
