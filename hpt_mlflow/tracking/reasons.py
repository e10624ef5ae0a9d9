"""Why MLflow's client, a database or an object store failed, as one line that says what to do about it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator

import mlflow

from hpt_mlflow.errors import one_line, without_secrets

NAME, PASSWORD, TOKEN = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"
NOBODY_ANSWERS = "nobody answers there; check MLFLOW_TRACKING_URI, or start it with mlflow server"
# Object stores raise errors of their own.
STORE_LIBRARIES = frozenset(["boto3", "botocore"])


def reason(error: BaseException) -> str:
    """One line for whatever was raised, without the internals of connection pools and pages of HTML."""
    text = one_line(error)
    if refused := refusal(error):
        return refused
    if endpoint := re.search(r"Could not connect to the endpoint URL: \"(\w+://[^/\"]+)", text):
        return f"no S3 answers at {endpoint[1]}; check MLFLOW_S3_ENDPOINT_URL"
    if failed := re.search(r"too many (\d+) error responses|(\d+) Server Error", text):
        remedy = "see the server's log, and whether it reaches its database and artifact store"
        return f"the server answers with the error {failed[1] or failed[2]}; {remedy}"
    if "Max retries exceeded" in text or "Connection refused" in text:
        return NOBODY_ANSWERS
    return re.sub(r"\. Response body: '<.*", "", text)


def refusal(error: BaseException) -> str:
    """What a user has to mend before the same call can succeed; empty if that is unknown, as in an outage."""
    text = "; ".join(str(each) for each in _chain(error))
    for mark, meaning in MEANINGS:
        if found := re.search(mark, text, re.DOTALL):
            return without_secrets(found.expand(meaning) if isinstance(meaning, str) else meaning(text))
    return ""


def from_store(error: BaseException) -> bool:
    """Whether the library of an object store raised an error, or is missing."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else ""
    return (missing or type(error).__module__).partition(".")[0] in STORE_LIBRARIES


def _bucket(text: str) -> str:
    """Which bucket is missing or closed."""
    found = re.search(r"s3://([^/\s]+)|Failed to upload \S+ to ([^/\s]+)/", text)
    where = f"the bucket {found[1] or found[2]}" if found else "the bucket"
    if "NoSuchBucket" in text or "bucket does not exist" in text:
        return f"{where} does not exist; check the server's artifact root, and MLFLOW_S3_ENDPOINT_URL"
    call = re.search(r"when calling the (\w+) operation", text)
    rights = "s3:PutObject, s3:GetObject and s3:ListBucket"
    return f"no permission on {where}{f' ({call[1]})' if call else ''}; ask for {rights}"


def _login(text: str) -> str:
    """Which variables of the login are missing or wrong."""
    if "@" in mlflow.get_tracking_uri():
        return "the server does not accept the user and password in MLFLOW_TRACKING_URI"
    given = [name for name in (NAME, PASSWORD) if os.environ.get(name)]
    if len(given) == 1:
        return f"the server asks for a login; set {NAME if given == [PASSWORD] else PASSWORD} too"
    if given:
        return f"the server does not accept {NAME} ({os.environ[NAME]}) with {PASSWORD}; check both"
    if os.environ.get(TOKEN):
        return f"the server does not accept {TOKEN}; it is wrong or has expired"
    return f"the server asks for a login; set {NAME} and {PASSWORD}, or {TOKEN}"


def _permission(text: str) -> str:
    """Who may not do what."""
    user = os.environ.get(NAME, "")
    who = f"the user {user} lacks" if user else "you lack"
    call = re.search(r"/api/\d\.\d/mlflow/([\w/-]+)", text)
    said = re.search(r"PERMISSION_DENIED: ([^;\n]+)", text)
    details = ": ".join(found[1] for found in (call, said) if found)
    if re.search("registered-model|model-version", text):
        remedy = "ask for EDIT on the registered model"
    else:
        remedy = "ask for EDIT on the experiment" if call or "mlflow-artifacts" in text else "ask for it"
    return f"{who} a permission{f' ({details})' if details else ''}; {remedy}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that led to it."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


# What an error's text shows, and what it means, or the function that says it: the first that fits.
MEANINGS: tuple[tuple[str, str | Callable[[str], str]], ...] = (
    (r"error code 401|\b401 Client Error|\bUNAUTHENTICATED\b|CUSTOMER_UNAUTHORIZED", _login),
    ("No module named '(boto3|botocore)'", "the artifacts are in S3, which takes the package boto3; pip install boto3"),
    (r"The config profile \((.*?)\) could not be found", r"AWS_PROFILE: there is no profile \1"),
    (r"Partial credentials found in env, missing: (\w+)", r"S3 needs all credentials; set \1 too"),
    ("Unable to locate credentials", "S3 needs credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    (
        "InvalidAccessKeyId|SignatureDoesNotMatch|does not exist in our records|signature we calculated",
        "S3 does not accept AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY; check both",
    ),
    (
        "ExpiredToken|RequestExpired|InvalidToken|token has expired|token is expired",
        "the credentials of S3 have expired; renew AWS_SESSION_TOKEN and the two AWS keys that belong to it",
    ),
    (r"NoSuchBucket|bucket does not exist|AccessDenied|Access Denied|\(403\) when calling", _bucket),
    ("Invalid Host header", "the server does not accept this host name; add it to --allowed-hosts of mlflow server"),
    (r"error code 403|\b403 Client Error|\bPERMISSION_DENIED\b", _permission),
    (
        r"invalid path: (\S+)",
        r"there is no file \1 with certificates; check MLFLOW_TRACKING_SERVER_CERT_PATH and REQUESTS_CA_BUNDLE",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED.*(?:Hostname mismatch|IP address mismatch)",
        "its certificate is for another host; write the host as the certificate names it",
    ),
    (
        "SSL validation failed for",
        "the certificate of S3 is not trusted; set AWS_CA_BUNDLE to the file with the certificate of its CA",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "its certificate is not trusted; set MLFLOW_TRACKING_SERVER_CERT_PATH to the file with the certificate of "
        "its CA",
    ),
    ("WRONG_VERSION_NUMBER|record layer failure", "it does not speak TLS on this port; write http://"),
    ("plain HTTP request was sent to HTTPS port", "it speaks TLS on this port; write https://"),
    (
        "error code 413|413 Client Error",
        "the proxy in front of the server refuses files of this size; raise its limit, in nginx client_max_body_size",
    ),
    ("logged-models.* error code 404", "the server knows no logged models; it takes MLflow 3 or newer"),
    ("registered-models/alias.* error code 404", "the registry knows no aliases; leave out the alias"),
    ("error code 404", "there is no MLflow server at this address (404); check the path in MLFLOW_TRACKING_URI"),
)
