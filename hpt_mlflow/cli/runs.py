"""Commands about runs: their results, which are unfinished, and sending what could not be delivered."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import suppress

import click

from hpt_mlflow.cli.output import echo_table, errors, log_to_stderr
from hpt_mlflow.errors import HptError


@click.command()
def results() -> None:
    """Print the test scores of all finished evaluations in one table."""
    with errors():
        from hpt_mlflow.tracking.connection import connect
        from hpt_mlflow.tracking.models.results_table import HEADER, result_rows

        connect()
        echo_table(HEADER, result_rows())


@click.command()
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    default=5000,
    show_default=True,
    metavar="N",
    help="Of the server that is started here.",
)
@click.option("--browser/--no-browser", default=True, show_default=True, help="Whether to open a browser.")
def ui(port: int, browser: bool) -> None:
    """Open MLflow's UI on charts of all evaluations on the same test images as the newest one.

    A server is started here, until Ctrl-C, unless MLFLOW_TRACKING_URI names one.
    """
    with errors():
        from hpt_mlflow.tracking.connection import connect
        from hpt_mlflow.tracking.models.results_table import comparison_path

        uri = connect()
        path = comparison_path()
        elsewhere = uri.startswith(("http:", "https:"))
        page = f"{uri.rstrip('/') if elsewhere else f'http://127.0.0.1:{port}'}/{path}"
        click.echo(page)
        server = None if elsewhere else _start_ui(uri, port)
        if browser:
            click.launch(page)
        if server:
            with suppress(KeyboardInterrupt):
                server.wait()


def _start_ui(uri: str, port: int) -> subprocess.Popen[bytes]:
    """Start MLflow's server, and wait until it answers.

    Raises:
        HptError: the port is taken, or the server ends instead.
    """
    with socket.socket() as probe:
        # A server that ended a moment ago does not keep the port from the next.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise HptError(f"{port} cannot be used ({error.strerror})", "name a free one", setting="port") from error
    server = subprocess.Popen([sys.executable, "-m", "mlflow", "ui", "--port", str(port), "--backend-store-uri", uri])
    while server.poll() is None:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return server
        time.sleep(0.2)
    raise HptError(f"MLflow's server ended with {server.returncode}", "read what it says above")


@click.command()
def runs() -> None:
    """List unfinished runs, and the command that resumes each."""
    with errors():
        from hpt_mlflow.tracking.connection import connect
        from hpt_mlflow.tracking.runs.unfinished import unfinished_runs

        connect()
        found = unfinished_runs()
        if not found:
            click.echo("Every run is finished.")
            return
        echo_table(("run", "name", "state", "training state", "last seen"), [run[:5] for run in found])
        continuable = [run for run in found if run.command]
        if continuable:
            click.echo("\nTo resume one of them, run its command again:")
        for run in continuable:
            click.echo(f"  {run.run_id}  {run.command}")


@click.command()
@click.option(
    "--patience",
    default=30.0,
    show_default=True,
    help="Seconds to wait for a server that does not answer.",
)
@click.option("--model-name", help="Register the models that wait under this name, if you may not write to their own.")
def sync(patience: float, model_name: str | None) -> None:
    """Send to MLflow what trainings could not deliver, and mark runs KILLED whose process has died."""
    with errors():
        from hpt_mlflow.tracking.connection import prepare
        from hpt_mlflow.tracking.delivery.spool import spool_root
        from hpt_mlflow.tracking.delivery.sync import sync_all

        log_to_stderr()
        prepare()
        outcomes = sync_all(patience, model_name)
        for one in outcomes:
            left = f", {one.left} are left in {one.folder}" if one.left else ""
            click.echo(f"{one.run}: {one.delivered} entries delivered{left}" + (f" ({one.why})" if one.why else ""))
        if not outcomes:
            click.echo(f"Nothing waits in {spool_root()}.")
        if any(one.left for one in outcomes):
            raise HptError("some entries could not be delivered; they are kept", "run hpt sync again")
