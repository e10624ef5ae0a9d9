"""Whether a registry lets this user write, asked before a training begins."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mlflow
import pytest

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.models.store import check_may_register

MODEL = {"registered_model": {"name": "hpt", "description": "of the team"}}


@pytest.fixture
def registry(store):
    """A registry that answers as MLflow's does; what it answers to each call, and what was asked."""
    answers, asked = {}, []

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            length = int(self.headers.get("Content-Length") or 0)
            call = (self.command, self.path.partition("?")[0].rpartition("/")[2])
            asked.append((call, json.loads(self.rfile.read(length) or b"{}")))
            status, content = answers.get(call, (200, MODEL))
            if call == ("POST", "create") and status == 200:
                answers.pop(("GET", "get"), None)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        do_GET = do_POST = do_PATCH = do_DELETE = answer  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    mlflow.set_registry_uri(f"http://me:secret@127.0.0.1:{server.server_port}")
    yield answers, asked
    server.shutdown()
    server.server_close()


DENIED = (403, {"error_code": "PERMISSION_DENIED", "message": "Permission denied"})
ABSENT = (404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such model"})


@pytest.mark.parametrize(
    "refused",
    [
        {("GET", "get"): DENIED},
        {("PATCH", "update"): DENIED},
        {("GET", "get"): ABSENT, ("POST", "create"): DENIED},
    ],
)
def test_a_model_that_may_not_be_written_is_refused(registry, refused):
    registry[0].update(refused)
    with pytest.raises(
        HptError, match=r"model_name: hpt may not be written .*Permission denied.*name another"
    ) as caught:
        check_may_register("hpt")
    assert "secret" not in str(caught.value)


def test_asking_changes_nothing(registry):
    check_may_register("hpt")
    (call, body) = registry[1][-1]
    assert call == ("PATCH", "update")
    assert body["description"] == "of the team"


def test_a_model_that_is_not_there_is_made_and_never_deleted_as_others_may_register_in_it(registry):
    registry[0][("GET", "get")] = ABSENT
    registry[0][("DELETE", "delete")] = DENIED
    check_may_register("hpt")
    assert [call for call, _ in registry[1] if call[0] != "GET"] == [("POST", "create")]


def test_a_registry_that_does_not_answer_may_answer_later(store, unused_port, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_registry_uri(f"http://127.0.0.1:{unused_port}")
    check_may_register("hpt")
