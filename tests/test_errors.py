import pytest

from hpt_mlflow.errors import HptError, one_line, without_secrets


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("journal:~/hpt.journal", "journal:~/hpt.journal"),
        ("journal:/a:b@c/hpt.journal", "journal:/a:b@c/hpt.journal"),
        ("sqlite:///hpt.db", "sqlite:///hpt.db"),
        ("postgresql://u@host/db", "postgresql://u@host/db"),
        ("postgresql://u:secret@host/db", "postgresql://u:***@host/db"),
        ("postgresql+psycopg://u:secret@host:5432/db", "postgresql+psycopg://u:***@host:5432/db"),
        ("postgres://u:secret@host/db", "postgres://u:***@host/db"),
        ("postgresql://u:secret@host:port/db", "postgresql://u:***@host:port/db"),
        ("postgresql://host/db?user=u&password=secret", "postgresql://host/db?user=u&password=***"),
        ("postgresql://u:sec:r@t/x@host/db?host=/tmp", "postgresql://u:***@host/db?host=/tmp"),
        ("sqlite:////data/a:b@c.db", "sqlite:////data/a:b@c.db"),
        ("mysql://host/db?passwd=secret", "mysql://host/db?passwd=***"),
        ("://u:secret@host", "://u:***@host"),
        ("http://me:secret@host:5000", "http://me:***@host:5000"),
        ("https://host/api?token=secret&page=2", "https://host/api?token=***&page=2"),
        (
            "cannot reach http://me:secret@host, try http://you:word@host",
            "cannot reach http://me:***@host, try http://you:***@host",
        ),
        ("models:/hpt@champion is not in http://host:5000", "models:/hpt@champion is not in http://host:5000"),
        ("http://me:12345@host", "http://me:***@host"),
        ("http://host:5000/users/me@example.org", "http://host:5000/users/me@example.org"),
        ("http://host:5000: nobody, ask me@example.org", "http://host:5000: nobody, ask me@example.org"),
        ("postgresql://me:two words@host/db", "postgresql://me:***@host/db"),
        ("https://secret@host/repository", "https://***@host/repository"),
        (
            "postgresql://host/db?sslpassword=secret&sslmode=require",
            "postgresql://host/db?sslpassword=***&sslmode=require",
        ),
        (
            "mssql:///?odbc_connect=UID%3Dme%3BPWD%3Dsecret%3BPORT%3D1",
            "mssql:///?odbc_connect=UID%3Dme%3BPWD%3D***%3BPORT%3D1",
        ),
        ("http://host/?token=secret: nobody answers", "http://host/?token=***: nobody answers"),
        ("write postgresql://USER:PASSWORD@HOST/DATABASE", "write postgresql://USER:PASSWORD@HOST/DATABASE"),
        ("nothing", "nothing"),
        ("", ""),
    ],
)
def test_passwords_are_not_shown(address, shown):
    assert without_secrets(address) == shown


def test_no_error_shows_a_password():
    error = HptError("tracking server http://me:secret@host: nobody answers")
    assert str(error) == "tracking server http://me:***@host: nobody answers"
    assert one_line(OSError("http://me:secret@host\nand more")) == "http://me:***@host"
    assert one_line(OSError()) == "OSError"
