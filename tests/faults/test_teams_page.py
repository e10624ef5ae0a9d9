"""The files of docs/teams.md, run as they stand there but for names and ports: nginx, MLflow, PostgreSQL and S3."""

import re
import shlex
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import mlflow
import pytest
import yaml
from mlflow.tracking import MlflowClient
from processes import kill_group, wait_for
from team import BUCKET, POSTGRES_BIN, free_port, is_there, object_store, postgres
from workplace import Workplace

PAGE = (Path(__file__).parents[2] / "docs" / "teams.md").read_text()
SECRETS = {"DATABASE_PASSWORD": "secret", "SECRET_KEY": "key", "S3_KEY": "team", "S3_SECRET": "secret"}
PASSWORD = "CHANGE-THIS-PASSWORD"


def block(language, number=0):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)[number]


def compose(**values):
    """The compose file, with variables of `.env` as docker compose puts them in."""
    return yaml.safe_load(re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], block("yaml")))


def test_the_compose_file_names_what_it_has_and_mounts_what_the_page_shows():
    described = compose(**SECRETS, S3_ENDPOINT="http://s3")
    services = described["services"]
    assert set(services) == {"database", "mlflow", "nginx"}
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        assert all(isinstance(value, str) for value in service.get("environment", {}).values())
    assert services["database"]["volumes"][0].split(":")[0] in described["volumes"]
    mounted = [volume.split(":")[0] for name in ("mlflow", "nginx") for volume in services[name]["volumes"]]
    assert mounted == ["./auth.ini", "./nginx.conf", "./tls"]
    assert (
        services["mlflow"]["environment"]["MLFLOW_AUTH_CONFIG_PATH"] == services["mlflow"]["volumes"][0].split(":")[1]
    )


@pytest.fixture
def certificate(tmp_path):
    """A private key and its certificate for this machine, in a folder as `/tls`."""
    folder = tmp_path / "tls"
    folder.mkdir()
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    words += ["-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "server.key"]
    subprocess.run([*words, "-out", folder / "server.pem"], check=True, capture_output=True)
    return folder


def nginx_configuration(folder, port, upstream, certificate):
    """The page's server, within what Debian's nginx.conf has around it."""
    server = put_in(
        block("nginx"),
        {
            "listen 443": f"listen 127.0.0.1:{port}",
            "/tls/": f"{certificate}/",
            "mlflow.example.org": "localhost",
            "mlflow:5000": f"127.0.0.1:{upstream}",
        },
    )
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    places = "".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    file = folder / "nginx.conf"
    file.write_text(
        f"daemon off; pid {folder}/nginx.pid; error_log {folder}/nginx.txt;\n"
        f"events {{}} http {{ access_log off; {places}\n{server}}}"
    )
    return file


def put_in(text, values):
    """The page's text with names and ports of this machine, each of which must be there."""
    for theirs, ours in values.items():
        assert theirs in text, theirs
        text = text.replace(theirs, ours)
    return text


def start_mlflow(place, database, store, port, https):
    """The compose file's service, on databases that are made as the page says."""
    for name in ("mlflow", "mlflow_auth"):
        words = ["-h", "127.0.0.1", "-p", str(database.port), "-U", "mlflow", name]
        subprocess.run([POSTGRES_BIN / "createdb", *words], check=True)
    address = {"@database": f"@127.0.0.1:{database.port}"}
    settings = place.folder / "auth.ini"
    settings.write_text(put_in(block("ini"), address))
    service = compose(**SECRETS, S3_ENDPOINT=f"http://127.0.0.1:{store}")["services"]["mlflow"]
    here = {"0.0.0.0": "127.0.0.1", "5000": str(port), "mlflow.example.org": f"localhost,127.0.0.1:{port}"}
    command = put_in(service["command"], address | here | {"team-mlflow": BUCKET})
    more = {"MLFLOW_AUTH_CONFIG_PATH": str(settings), "AWS_DEFAULT_REGION": "us-east-1"}
    server = place.start(*shlex.split(command), **service["environment"] | more)
    wait_for(lambda: is_there(f"http://127.0.0.1:{port}/health"), server)
    return server


@pytest.mark.slow
def test_the_services_of_the_compose_file_work_together(tmp_path, certificate, monkeypatch):
    for package in ("boto3", "moto", "psycopg", "flask_wtf"):
        pytest.importorskip(package)
    if not (POSTGRES_BIN / "pg_ctl").exists() or not shutil.which("nginx"):
        pytest.skip("PostgreSQL and nginx are not installed")
    port, https, started = free_port(), free_port(), []
    with postgres() as database, object_store(tmp_path) as store:
        try:
            started.append(start_mlflow(Workplace(tmp_path, ""), database, store, port, https))
            configuration = nginx_configuration(tmp_path, https, port, certificate)
            started.append(subprocess.Popen(["nginx", "-c", configuration], start_new_session=True))
            monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate / "server.pem"))
            monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
            mlflow.set_tracking_uri(f"https://localhost:{https}")
            client = MlflowClient()
            wait_for(lambda: listens(https), started[1])
            # The processes of the server all make its first experiment when first asked, and one may fail.
            wait_for(lambda: answers(client), started[0])
            run = client.create_run(client.create_experiment("roads"))
            # nginx by itself refuses files of more than 1 MB.
            (tmp_path / "large.bin").write_bytes(bytes(3 << 20))
            client.log_artifact(run.info.run_id, str(tmp_path / "large.bin"))
            assert [(file.path, file.file_size) for file in client.list_artifacts(run.info.run_id)] == [
                ("large.bin", 3 << 20)
            ]
            monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong password")
            with pytest.raises(mlflow.MlflowException, match="401"):
                client.search_experiments()
        finally:
            mlflow.set_tracking_uri(None)
            for process in started:
                kill_group(process, 9)


def answers(client):
    with suppress(mlflow.MlflowException):
        return client.search_experiments(max_results=1)
    return False


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
