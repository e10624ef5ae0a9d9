"""Files that are made, or happen, to block, to fill the memory, or to run something."""

import io
import os
import signal
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from picture_files import chunk, encode
from PIL import EpsImagePlugin, Image

from hpt_mlflow.data import decode as decode_module
from hpt_mlflow.data import pictures
from hpt_mlflow.data.decode import decode
from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.rgb import to_rgb

COLOURS = np.array([[[255, 0, 0], [0, 160, 40]], [[20, 30, 200], [128, 128, 128]]], dtype=np.uint8)


def in_time(picture):
    """Why a picture is refused, without waiting for ever for what blocks."""
    reasons = []

    def attempt():
        try:
            decode(picture)
        except UnreadableImageError as error:
            reasons.append(str(error))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(10)
    assert reasons, "it blocks"
    return reasons[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are none")
def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "queue.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name in ("queue.png", "endless.png", "folder.png"):
        assert in_time(tmp_path / name) == "it is not a regular file"


def test_links_are_followed_unless_they_lead_in_circles(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "picture.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "picture.png")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")
    np.testing.assert_array_equal(decode(tmp_path / "link.png"), COLOURS)
    assert "symbolic links" in in_time(tmp_path / "itself.png")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "picture.png")
    (tmp_path / "picture.png").chmod(0)
    assert "PermissionError" in in_time(tmp_path / "picture.png")


def test_a_file_larger_than_any_picture_is_not_read(tmp_path):
    with open(tmp_path / "sparse.webp", "wb") as file:
        file.write(b"RIFF\xf0\xff\xff\xffWEBPVP8 ")
        file.truncate(1 << 40)
    assert in_time(tmp_path / "sparse.webp") == "1099511627776 bytes are too many"


def test_a_picture_is_told_by_its_content_not_by_its_name(tmp_path):
    for kind, name in (
        ("PNG", "picture.jpg"),
        ("GIF", "picture.webp"),
        ("WEBP", "picture.tga"),
        ("TGA", "picture.png"),
    ):
        Image.new("RGB", (8, 8), "white").save(tmp_path / name, kind)
        assert (decode(tmp_path / name) == 255).all(), kind


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A program that only leaves a trace of having been run, in place of Ghostscript; gives the trace."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{tmp_path}/trace'\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return tmp_path / "trace"


@pytest.mark.skipif(sys.platform == "win32", reason="its programs are no shell scripts")
def test_no_program_is_run_for_a_file_whatever_its_name(tmp_path, ghostscript):
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png", "EPS")
    with Image.open(tmp_path / "picture.png") as image, pytest.raises(OSError):  # noqa: PT011
        image.load()
    assert ghostscript.exists(), "this test would not find out"
    ghostscript.unlink()
    for picture in (tmp_path / "picture.png", (tmp_path / "picture.png").read_bytes()):
        with pytest.raises(UnreadableImageError, match="cannot identify"):
            decode(picture)
    assert not ghostscript.exists()


def test_a_tiff_with_tiles_far_larger_than_itself_is_refused():
    tags = [(256, 64), (257, 64), (258, 8), (259, 8), (262, 1), (277, 1), (322, 30_000), (323, 30_000), (324, 134)]
    packed = zlib.compress(bytes(64 * 64))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (325, len(packed))])
    with pytest.raises(UnreadableImageError, match="64 x 64 pixels in tiles of 30000 x 30000 are too many"):
        decode(b"II*\0" + struct.pack("<IH", 8, 10) + entries + bytes(4) + packed)


def test_an_open_image_of_too_many_pixels_is_not_loaded(monkeypatch):
    monkeypatch.setattr(pictures, "MOST_PIXELS", 100)
    with Image.open(io.BytesIO(encode(Image.new("RGB", (11, 10))))) as image:
        monkeypatch.setattr(image, "load", lambda: pytest.fail("it is loaded"))
        with pytest.raises(UnreadableImageError, match="11 x 10 pixels are too many"):
            decode(image)


def test_an_open_image_is_left_as_it_is():
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(encode(Image.new("RGB", (8, 4)), exif=exif))) as image:
        assert decode(image).shape == decode(image).shape == (8, 4, 3)
        assert image.size == (8, 4)


@pytest.mark.parametrize("words", [1, 100])
def test_a_png_with_words_is_decoded_unless_they_are_endless(words):
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(10_000 * words**2)))
    file = encode(Image.fromarray(COLOURS))
    file = file[:33] + text + file[33:]
    if words == 1:
        np.testing.assert_array_equal(decode(file), COLOURS)
    else:
        with pytest.raises(UnreadableImageError, match="MAX_TEXT_CHUNK"):
            decode(file)


@pytest.mark.parametrize(("height", "middle"), [(1000, slice(372, 628)), (256, slice(0, 256))])
@pytest.mark.parametrize("turn", [lambda a: a, lambda a: a.transpose(1, 0, 2)])
def test_of_a_long_strip_the_middle_is_kept(height, middle, turn):
    strip = np.random.default_rng(0).integers(0, 256, (height, 4, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode(turn(strip), smallest_side=4), turn(strip[middle]))
    thick = strip.repeat(2, axis=0).repeat(2, axis=1)
    assert decode(turn(thick), smallest_side=4).shape == turn(strip[middle]).shape


def test_warnings_of_pillow_reach_nobody():
    code = f"""
from PIL import Image
from hpt_mlflow.data.decode import decode
Image.MAX_IMAGE_PIXELS = 20
print(decode({encode(Image.new("RGB", (5, 6)))!r}).shape)
print(decode({encode(Image.new("RGB", (5, 6)), exif=b"Exif" + bytes(2) + b"damaged!")!r}).shape)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("(6, 5, 3)\n(6, 5, 3)\n", "")


def test_importing_leaves_pillow_and_warnings_as_they_are():
    code = """
import warnings
import numpy  # has filters, too
from PIL import Image
before = list(warnings.filters), Image.core.get_block_size()
from hpt_mlflow.data.decode import decode
assert (list(warnings.filters), Image.core.get_block_size()) == before
decode(Image.new("RGB", (1, 1)))
assert Image.core.get_block_size() == 1 << 26
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("side", "together"), [(10, True), (50, False)])
def test_threads_decode_large_pictures_one_at_a_time(monkeypatch, side, together):
    monkeypatch.setattr(pictures, "LARGE_BYTES", 4 * 40 * 40)
    both = threading.Barrier(2)

    def meet(image):
        try:
            both.wait(10 if together else 0.3)
        except threading.BrokenBarrierError:
            assert not together
        else:
            assert together
        return to_rgb(image)

    monkeypatch.setattr(decode_module, "to_rgb", meet)
    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(lambda i: decode(Image.new("L", (side, side), i)).max() == i, range(2)))


def test_a_large_picture_that_is_refused_gives_its_turn_to_the_next(monkeypatch):
    monkeypatch.setattr(pictures, "LARGE_BYTES", 0)
    whole = encode(Image.effect_noise((64, 64), 80))
    with pytest.raises(UnreadableImageError):
        decode(whole[:1000])
    assert decode(whole).shape == (64, 64, 3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_a_forked_process_does_not_wait_for_the_threads_of_its_parent(monkeypatch):
    monkeypatch.setattr(pictures, "LARGE_BYTES", 0)
    with pictures._turn_of_large:
        child = os.fork()
        if not child:
            signal.alarm(10)
            decode(np.zeros((9, 9), np.uint8))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


def test_a_reason_is_one_line_that_can_be_shown(monkeypatch):
    def fail(image):
        raise ValueError(f"a\0b{os.fsdecode(bytes([0xFF]))}\nsecond line")

    monkeypatch.setattr(decode_module, "to_rgb", fail)
    with pytest.raises(UnreadableImageError) as caught:
        decode(np.zeros((9, 9), np.uint8))
    assert str(caught.value).startswith(r"ValueError: a\x00b\udc")
    assert str(caught.value).isprintable()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory that a process took")
@pytest.mark.parametrize(
    ("depth", "kind", "channels", "bytes_for_a_pixel"),
    # What Pillow keeps of the picture, and for all but RGB, what it is converted by way of.
    [(8, 6, 4, 4 + 4), (16, 0, 1, 2 + 2 + 1 + 1 + 4)],
)
def test_three_threads_with_large_pictures_take_the_memory_of_one(tmp_path, depth, kind, channels, bytes_for_a_pixel):
    side = 9_600
    header = struct.pack(">IIBBBBB", side, side, depth, kind, 0, 0, 0)
    packer, row = zlib.compressobj(1), bytes(1 + side * channels * depth // 8)
    rows = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    file = tmp_path / "large.png"
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    code = f"""
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from hpt_mlflow.data.decode import decode
def most():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
before = most()
with ThreadPoolExecutor(3) as pool:
    shapes = list(pool.map(lambda file: decode(file, 32).shape, [Path({str(file)!r})] * 3))
assert shapes == [(32, 32, 3)] * 3, shapes
print((most() - before) / {side**2})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.15 * bytes_for_a_pixel
