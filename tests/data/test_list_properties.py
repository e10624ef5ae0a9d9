import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from list_checks import assert_read_alike

from hpt_mlflow.data import list_source

COMMON = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\t"), max_size=8)
LABELS = st.one_of(st.integers(-5, 10**21).map(lambda i: f" {i}"), NAMES.map(lambda name: f"\t{name}"), st.just(""))
LINES = st.lists(st.tuples(NAMES, LABELS, st.sampled_from(["\n", "\r\n", "\r", "\n\n", " \n"])), max_size=12)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "list.txt"


@settings(COMMON, max_examples=200)
@given(lines=LINES, mark=st.booleans())
def test_a_list_is_what_its_lines_say(file, lines, mark):
    content = "".join(map("".join, lines)).encode()
    assert_read_alike(file, b"\xef\xbb\xbf" + content if mark else content)


@settings(COMMON, max_examples=100)
@given(names=st.lists(NAMES.filter(str.strip), min_size=1, max_size=30), data=st.data(), block=st.integers(1, 90))
def test_a_labelled_list_is_the_same_in_any_blocks(file, names, data, block):
    labels = [data.draw(st.sampled_from(["cat", "dog", "e\u0301", "\u00e9", "7"])) for _ in names]
    content = "\n".join(f"{name}\t{label}" for name, label in zip(names, labels, strict=True))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_source, "BLOCK_BYTES", block)
        assert_read_alike(file, content.encode())


@settings(COMMON, max_examples=200)
@given(content=st.lists(st.one_of(st.binary(max_size=12), st.sampled_from([b"\n", b"\t", b" 1", b"\xef\xbb\xbf"]))))
def test_any_bytes_are_read_as_python_reads_them(file, content):
    assert_read_alike(file, b"".join(content))
