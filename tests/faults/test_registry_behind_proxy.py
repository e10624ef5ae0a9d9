"""A real server behind a proxy that stands for permissions: what a check leaves behind, and what MLflow prints."""

import http.client
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.artifacts import WRITE_TEST_FILE, check_may_store
from hpt_mlflow.tracking.connection import prepare
from hpt_mlflow.tracking.models.store import check_may_register

DENIED = b'{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}'


@contextmanager
def proxy(upstream, before):
    """A proxy of a server; gives its port.

    Args:
        before: is called with the method and the path of each call; where it says True, the answer is 403.
    """

    class Handler(BaseHTTPRequestHandler):
        def pass_on(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, kind, content = 403, "application/json", DENIED
            if not before(self.command, self.path):
                connection = http.client.HTTPConnection("127.0.0.1", upstream)
                headers = {name: value for name, value in self.headers.items() if name != "Host"}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                status, kind, content = answer.status, answer.headers["Content-Type"], answer.read()
                connection.close()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_a_registry_with_permissions(server, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    start_server, workplace = server
    start_server()
    direct, refused = workplace.client, set()

    def before(method, path):
        call = (method, path.partition("?")[0].rpartition("/")[2])
        if call == ("DELETE", "delete"):
            # What another training may do at this moment.
            direct.create_model_version("new", "s3://bucket/model")
        return call in refused

    with proxy(int(workplace.tracking_uri.rpartition(":")[2]), before) as port:
        uri = f"http://me:secret@127.0.0.1:{port}"
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        prepare()
        check_may_register("new")
        direct.create_model_version("new", "s3://bucket/model")
        direct.update_registered_model("new", "of the team")
        check_may_register("new")
        assert [version.version for version in direct.search_model_versions("name='new'")] == ["1"]
        assert direct.get_registered_model("new").description == "of the team"
        refused |= {("PATCH", "update"), ("POST", "create")}
        for name in ("new", "another"):
            with pytest.raises(HptError, match=f"model_name: {name} may not be written") as caught:
                check_may_register(name)
            assert "secret" not in str(caught.value)
        refused -= {("PATCH", "update")}
        check_may_register("new", "champion")
        assert direct.get_registered_model("new").aliases == {}
        refused |= {("POST", "alias")}
        with pytest.raises(HptError, match="alias: the registry .* refuses the alias champion of new .*; use another"):
            check_may_register("new", "champion")
        check_may_register("new")
        check_may_store("0")
        (written,) = (workplace.folder / "artifacts" / "0").iterdir()
        assert written.name == WRITE_TEST_FILE
        refused |= {("PUT", WRITE_TEST_FILE)}
        other = direct.create_experiment("other")
        with pytest.raises(HptError, match=f"experiment other in mlflow-artifacts:/{other}: you lack a permission"):
            check_may_store(other)
        refused.clear()
        client = MlflowClient()
        client.set_terminated(client.create_run("0").info.run_id)
        assert "secret" not in capsys.readouterr().out
        mlflow.set_tracking_uri(None)
