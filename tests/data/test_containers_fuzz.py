"""Damaged archives and tables: a dataset of pictures or reasons, or one reason why it cannot be opened."""

import io
import resource
import time
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import damaged
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_files import encode
from PIL import Image

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.sources import open_dataset
from hpt_mlflow.errors import HptError

PICTURES = [encode(Image.new("RGB", (6, 5), (value, value, value))) for value in range(4)]
# Of processor time; the slowest file here takes a hundredth of it.
MOST_SECONDS = 10
MOST_MEMORY_KIB = 1 << 20


def archive(method):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as written:
        for i, picture in enumerate(PICTURES):
            written.writestr(f"{'ab'[i % 2]}/{i}.png", picture)
    return stream.getvalue()


def table(**options):
    stream = io.BytesIO()
    images = [{"bytes": picture, "path": f"{i}.png"} for i, picture in enumerate(PICTURES)]
    pq.write_table(pa.table({"image": images, "label": [0, 1, 0, 1]}), stream, row_group_size=2, **options)
    return stream.getvalue()


WHOLE = {
    "zip": [archive(zipfile.ZIP_STORED), archive(zipfile.ZIP_DEFLATED)],
    "parquet": [table(), table(compression="zstd", use_dictionary=False), table(compression="gzip", version="1.0")],
}
damages = st.lists(
    st.one_of(
        # Directories are at the end of a file.
        st.tuples(st.just("set"), st.floats(0, 1), st.integers(0, 255)),
        st.tuples(st.just("large"), st.floats(0, 1), st.just(0)),
        st.tuples(st.just("cut"), st.floats(0, 1), st.just(0)),
        st.tuples(st.just("remove"), st.floats(0, 1), st.integers(1, 64)),
        st.tuples(st.just("repeat"), st.floats(0, 1), st.integers(1, 64)),
    ),
    min_size=1,
    max_size=3,
)


def assert_pictures_or_reasons(address):
    started = time.process_time()
    try:
        dataset = open_dataset(address)
    except HptError as error:
        assert str(error).isprintable()  # noqa: PT017
        return
    assert len(dataset) == len(dataset.names) == len(dataset.pictures)
    assert dataset.labels is None or len(dataset.labels) == len(dataset)
    for i in range(min(len(dataset), 10)):
        try:
            assert isinstance(dataset.pictures[i], bytes)
        except UnreadableImageError as error:
            assert str(error).isprintable()  # noqa: PT017
    assert time.process_time() - started < MOST_SECONDS


@pytest.mark.parametrize("scheme", WHOLE)
def test_whole_files_are_datasets(scheme, tmp_path):
    for content in WHOLE[scheme]:
        (tmp_path / f"a.{scheme}").write_bytes(content)
        dataset = open_dataset(f"{scheme}:{tmp_path}/a.{scheme}")
        assert list(dataset.pictures) == (PICTURES if scheme == "parquet" else [PICTURES[i] for i in (0, 2, 1, 3)])


@pytest.mark.parametrize("scheme", WHOLE)
def test_damaged_files_are_datasets_or_reasons(scheme, tmp_path):
    file = tmp_path / f"a.{scheme}"

    @settings(max_examples=150, deadline=None, derandomize=True)
    @given(st.sampled_from(WHOLE[scheme]), damages)
    def check(content, changes):
        file.write_bytes(damaged(content, changes, place_of=lambda share: 1 - share**2))
        assert_pictures_or_reasons(f"{scheme}:{file}")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST_MEMORY_KIB
