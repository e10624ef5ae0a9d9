"""What people read when a server, its login, its certificates or its object store refuse: one line that says why."""

import mlflow
import pytest
import requests
from mlflow.exceptions import MlflowException

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.connection import tracking_errors
from hpt_mlflow.tracking.reasons import NAME, NOBODY_ANSWERS, PASSWORD, TOKEN, reason, refusal


def refused(status, endpoint="runs/create", body="Permission denied"):
    return MlflowException(
        f"API request to endpoint /api/2.0/mlflow/{endpoint} failed with error code {status} != 200. "
        f"Response body: '{body}'"
    )


class StoreError(Exception):
    """As boto3 raises."""

    __module__ = "boto3.exceptions"


def upload(code):
    return StoreError(
        "Failed to upload /tmp/x.txt to team/mlflow/0/x.txt: "
        f"An error occurred ({code}) when calling the PutObject operation: {code}"
    )


def not_trusted(why):
    return MlflowException(
        "API request to https://host failed with exception HTTPSConnectionPool(host='host'): Max retries exceeded "
        f"(Caused by SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] {why}')))"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, f"set {NAME} and {PASSWORD}, or {TOKEN}"),
        ({NAME: "me"}, f"set {PASSWORD} too"),
        ({PASSWORD: "secret"}, f"set {NAME} too"),
        ({NAME: "me", PASSWORD: "secret"}, f"does not accept {NAME} (me) with {PASSWORD}"),
        ({TOKEN: "secret"}, f"does not accept {TOKEN}; it is wrong or has expired"),
    ],
)
def test_a_login_that_is_missing_or_wrong_names_its_variables(monkeypatch, given, said):
    for name in (NAME, PASSWORD, TOKEN):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    text = reason(refused(401, body="You are not authenticated"))
    assert said in text
    assert "secret" not in text


def test_a_password_in_the_address_is_what_the_server_refuses(monkeypatch):
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://me:secret@host")
    assert reason(refused(401)) == "the server does not accept the user and password in MLFLOW_TRACKING_URI"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (refused(403), "the user bob lacks a permission (runs/create); ask for EDIT on the experiment"),
        (refused(403, "model-versions/set-tag"), "ask for EDIT on the registered model"),
        (refused(403, body="Invalid Host header - possible attack"), "add it to --allowed-hosts"),
        (MlflowException("PERMISSION_DENIED: no aliases here"), "lacks a permission (no aliases here); ask for it"),
        (refused(404, "logged-models/search", "<!doctype html>"), "it takes MLflow 3 or newer"),
        (refused(404, "registered-models/alias", "<html>"), "the registry knows no aliases"),
        (refused(404, "experiments/search", "<html>"), "check the path in MLFLOW_TRACKING_URI"),
        (refused(400, body="<html>\nThe plain HTTP request was sent to HTTPS port"), "write https://"),
        (refused(418, body="<html>"), "error code 418 != 200"),
        (requests.HTTPError("413 Client Error: Request Entity Too Large for url"), "client_max_body_size"),
        (not_trusted("unable to get local issuer certificate"), "set MLFLOW_TRACKING_SERVER_CERT_PATH"),
        (not_trusted("certificate verify failed: IP address mismatch"), "is for another host"),
        (OSError("Could not find a suitable TLS CA certificate bundle, invalid path: /ca.pem"), "no file /ca.pem"),
        (MlflowException("Max retries exceeded (Caused by SSLError('[SSL: WRONG_VERSION_NUMBER]'))"), "write http://"),
        (StoreError("Unable to locate credentials"), "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (StoreError("Partial credentials found in env, missing: AWS_SECRET_ACCESS_KEY"), "set AWS_SECRET_ACCESS_KEY"),
        (StoreError("The config profile (team) could not be found"), "AWS_PROFILE: there is no profile team"),
        (StoreError("SSL validation failed for https://s3 CERTIFICATE_VERIFY_FAILED"), "set AWS_CA_BUNDLE"),
        (upload("InvalidAccessKeyId"), "does not accept AWS_ACCESS_KEY_ID"),
        (upload("ExpiredToken"), "renew AWS_SESSION_TOKEN"),
        (upload("NoSuchBucket"), "the bucket team does not exist"),
        (upload("AccessDenied"), "no permission on the bucket team (PutObject); ask for s3:PutObject"),
        (ModuleNotFoundError("No module named 'boto3'", name="boto3"), "pip install boto3"),
    ],
)
def test_what_a_person_has_to_mend_is_told_in_one_line(monkeypatch, error, said):
    monkeypatch.setenv(NAME, "bob")
    with pytest.raises(HptError) as caught, tracking_errors("subject"):
        raise error
    text = str(caught.value)
    assert text.startswith("subject: ")
    assert said in text
    assert "\n" not in text
    assert "<" not in text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MlflowException("Max retries exceeded (NewConnectionError: Connection refused)"), NOBODY_ANSWERS),
        (MlflowException("Max retries exceeded (ResponseError('too many 502 error responses'))"), "the error 502"),
        (StoreError('Could not connect to the endpoint URL: "http://s3:9000/team/x"'), "no S3 answers at http://s3:90"),
        (upload("InternalError"), "InternalError"),
    ],
)
def test_an_outage_is_no_refusal(error, said):
    assert said in reason(error)
    assert not refusal(error)


def test_mistakes_of_our_own_are_not_hidden():
    with pytest.raises(ZeroDivisionError), tracking_errors("subject"):
        raise ZeroDivisionError
