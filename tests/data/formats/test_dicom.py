import io
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_files import dicom, items
from pydicom.data import get_testdata_files
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML, JPEG2000Lossless, RLELossless

from hpt_mlflow.data.errors import UnreadableImageError
from hpt_mlflow.data.formats import dicom as dicom_module
from hpt_mlflow.data.formats import registry

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 4096, (5, 6), dtype=np.uint16)
SAMPLES = [Path(name) for name in get_testdata_files("**/*") if Path(name).is_file()]
DICOMS = [file for file in SAMPLES if registry.format_of(file) == "DICOM"]
# What pydicom's own decoders, or the files, lack.
REFUSED_IMAGES = {
    "JPEG-lossy.dcm",
    "JPEG2000-embedded-sequence-delimiter.dcm",
    "MR_truncated.dcm",
    "UN_sequence.dcm",
    "badVR.dcm",
    "meta_missing_tsyntax.dcm",
    "nested_priv_SQ.dcm",
    "no_meta.dcm",
    "no_meta_group_length.dcm",
    "priv_SQ.dcm",
}


def refused(content, words, frame=0):
    with pytest.raises(UnreadableImageError, match=words) as caught:
        registry.read(content, frame)
    assert str(caught.value).isprintable()


def range_of(read):
    return read.low, read.high


@pytest.mark.parametrize("file", DICOMS, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_every_sample_of_pydicom_is_an_image_or_refused_in_one_line(file):
    try:
        count = registry.frames(file)
        read = registry.read(file, max(0, count - 1))
    except UnreadableImageError as error:
        assert str(error).isprintable()  # noqa: PT017
        is_image = "PixelData" in pydicom.dcmread(file, force=True) if file.name != "badVR.dcm" else True
        assert not is_image or file.name in REFUSED_IMAGES
        return
    assert count >= 1
    theirs = pydicom.dcmread(file, force=True)
    if "TransferSyntaxUID" not in theirs.file_meta:
        theirs.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    theirs = theirs.pixel_array
    theirs = theirs[-1] if count > 1 else theirs
    assert read.values.shape[:2] == theirs.shape[:2]
    assert np.isfinite(read.values).all()
    if read.low is not None:
        assert read.low < read.high
        assert read.low <= read.values.min() <= read.values.max() <= read.high


def test_without_a_window_the_stored_bits_are_the_scale():
    read = registry.read(dicom(GREY, bits=12))
    np.testing.assert_array_equal(read.values, GREY)
    assert (read.values.dtype, range_of(read)) == (np.uint16, (0, 4095))
    read = registry.read(dicom(GREY, bits=12, RescaleSlope=1, RescaleIntercept=-1024))
    np.testing.assert_array_equal(read.values, GREY.astype(int) - 1024)
    assert (read.values.dtype, range_of(read)) == (np.int16, (-1024, 3071))
    read = registry.read(dicom(GREY, bits=12, RescaleSlope="-0.5", RescaleIntercept=10))
    np.testing.assert_array_equal(read.values, 10 - GREY / 2)
    assert (read.values.dtype, range_of(read)) == (np.float32, (10 - 4095 / 2, 10))
    signed = (GREY.astype(np.int16) - 2048) * 16
    read = registry.read(dicom(signed))
    np.testing.assert_array_equal(read.values, signed)
    assert range_of(read) == (-32768, 32767)


@pytest.mark.parametrize(
    ("function", "centre", "width", "low", "high"),
    [
        # PS3.3, C.11.2.1.2.1: LINEAR reaches its ends at c - 0.5 -+ (w - 1) / 2.
        (None, 40, 400, -160, 239),
        ("LINEAR", 2048, 4096, 0, 4095),
        ("LINEAR", 0, 100, -50, 49),
        ("LINEAR_EXACT", 40, 400, -160, 240),
        ("LINEAR_EXACT", 0.5, 0.25, 0.375, 0.625),
    ],
)
def test_values_are_clipped_to_the_window_whose_ends_are_the_scale(function, centre, width, low, high):
    elements = {"WindowCenter": centre, "WindowWidth": width, "RescaleSlope": 1, "RescaleIntercept": -1024}
    if function:
        elements["VOILUTFunction"] = function
    read = registry.read(dicom(GREY, bits=12, **elements))
    np.testing.assert_allclose(read.values, np.clip(GREY.astype(float) - 1024, low, high))
    assert range_of(read) == (low, high)


def test_the_first_of_several_windows_counts():
    read = registry.read(dicom(GREY, bits=12, WindowCenter=[1000, 5], WindowWidth=[101, 3]))
    assert range_of(read) == (949.5, 1049.5)
    assert registry.read(dicom(GREY, bits=12, WindowCenter=7)).high == 4095


def test_a_window_of_one_is_a_threshold():
    read = registry.read(dicom(GREY, bits=12, WindowCenter=2000, WindowWidth=1))
    np.testing.assert_array_equal(read.values, GREY > 1999.5)
    assert range_of(read) == (0, 1)


def test_a_sigmoid_window_is_one_between_0_and_1():
    read = registry.read(dicom(GREY, bits=12, WindowCenter=2000, WindowWidth=300, VOILUTFunction="SIGMOID"))
    np.testing.assert_allclose(read.values, 1 / (1 + np.exp(-4 * (GREY - 2000.0) / 300)), rtol=1e-6, atol=1e-30)
    assert range_of(read) == (0, 1)


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"WindowCenter": 40, "WindowWidth": 0}, "the centre 40 and the width 0"),
        ({"WindowCenter": 40, "WindowWidth": -5}, "the width -5"),
        ({"WindowCenter": 40, "WindowWidth": "0.5"}, "the width 0.5"),
        ({"WindowCenter": 40, "WindowWidth": 2, "VOILUTFunction": "CUBIC"}, "unknown function CUBIC"),
        ({"RescaleSlope": 0, "RescaleIntercept": 1}, "slope is 0"),
        ({"SamplesPerPixel": 4}, "4 samples per pixel"),
        ({"BitsStored": 17}, "'17' is invalid"),
        ({"Rows": 0}, "no pixels"),
        ({"Rows": 60000, "Columns": 60000}, "60000 x 60000 pixels are too many"),
        ({"Rows": 50}, "cannot be decoded"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(elements, words):
    refused(dicom(GREY, bits=12, **elements), words)


def test_monochrome1_is_turned_round_within_its_scale():
    read = registry.read(dicom(GREY, "MONOCHROME1", 12))
    np.testing.assert_array_equal(read.values, 4095 - GREY)
    assert (read.values.dtype, range_of(read)) == (np.uint16, (0, 4095))
    read = registry.read(dicom(GREY, "MONOCHROME1", 12, WindowCenter=1000, WindowWidth=201))
    np.testing.assert_array_equal(read.values, 899.5 + 1099.5 - np.clip(GREY, 899.5, 1099.5))


def test_lookup_tables_are_applied():
    table = (np.arange(4096) // 16 * 9).astype("<u2")
    entries = {"LUTDescriptor": [4096, 0, 12], "LUTData": table.tobytes()}
    read = registry.read(dicom(GREY, bits=12, VOILUTSequence=items(**entries)))
    np.testing.assert_array_equal(read.values, GREY // 16 * 9)
    assert range_of(read) == (0, 4095)
    read = registry.read(dicom(GREY, bits=12, VOILUTSequence=items(**entries), WindowCenter=50, WindowWidth=11))
    assert range_of(read) == (44.5, 54.5)
    modality = items(**entries, ModalityLUTType="US")
    read = registry.read(dicom(GREY, bits=12, ModalityLUTSequence=modality))
    np.testing.assert_array_equal(read.values, GREY // 16 * 9)
    assert range_of(read) == (0, 4095)


def test_each_frame_of_an_enhanced_image_has_its_own_scale():
    values = np.stack([GREY, GREY + 1])
    groups = [
        items(
            FrameVOILUTSequence=items(WindowCenter=1000 + k, WindowWidth=11, VOILUTFunction="LINEAR_EXACT"),
            PixelValueTransformationSequence=items(RescaleSlope=1, RescaleIntercept=-k),
        )[0]
        for k in (0, 1)
    ]
    content = dicom(values, PerFrameFunctionalGroupsSequence=groups)
    assert registry.frames(content) == 2
    for k in (0, 1):
        read = registry.read(content, k)
        np.testing.assert_array_equal(read.values, np.clip(GREY.astype(float), 994.5 + k, 1005.5 + k))
        assert range_of(read) == (994.5 + k, 1005.5 + k)
    refused(content, "no image 2, only 2", 2)
    shared = items(PixelValueTransformationSequence=items(RescaleSlope=2, RescaleIntercept=0))
    read = registry.read(dicom(values, bits=13, SharedFunctionalGroupsSequence=shared), 1)
    np.testing.assert_array_equal(read.values, 2 * (GREY + 1))


def test_colours_become_rgb():
    colours = RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    read = registry.read(dicom(colours, "RGB"))
    np.testing.assert_array_equal(read.values, colours)
    assert range_of(read) == (0, 255)
    read = registry.read(dicom(colours, "YBR_FULL"))
    luma, blue, red = np.moveaxis(colours.astype(float), 2, 0) - [[[0]], [[128]], [[128]]]
    # PS3.3, C.7.6.3.1.2
    wanted = [luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue]
    np.testing.assert_allclose(read.values, np.clip(np.stack(wanted, 2), 0, 255), atol=1.01)


def palette(kind, **more):
    tables = {}
    for i, colour in enumerate(("Red", "Green", "Blue")):
        tables[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        data = more.get("segments", (np.arange(256, dtype="<u2") * (i + 1)).tobytes())
        tables[f"{'Segmented' if kind else ''}{colour}PaletteColorLookupTableData"] = data
    return dicom(np.arange(256, dtype=np.uint8).reshape(16, 16), "PALETTE COLOR", **tables)


def test_palettes_become_rgb():
    read = registry.read(palette(""))
    wanted = np.arange(256).reshape(16, 16)[..., None] * [1, 2, 3]
    np.testing.assert_array_equal(read.values, wanted)
    assert range_of(read) == (0, 65535)


def test_a_palette_that_expands_without_end_is_refused():
    start = np.array([0, 1, 0], "<u2")
    refused(
        palette("x", segments=np.concatenate([start, np.tile([1, 65535, 9], 40)]).astype("<u2").tobytes()), "more than"
    )
    refused(palette("x", segments=np.concatenate([start, [2, 9, 0, 0]]).astype("<u2").tobytes()), "refer to others")


def test_bits_above_the_stored_ones_are_no_part_of_the_values():
    with_overlay = GREY | np.uint16(1 << 15)
    read = registry.read(dicom(with_overlay, bits=12))
    np.testing.assert_array_equal(read.values, GREY)


def compressed(values, syntax):
    made = pydicom.dcmread(io.BytesIO(dicom(values, bits=12)))
    made.compress(syntax, generate_instance_uid=False)
    stream = io.BytesIO()
    made.save_as(stream)
    return stream.getvalue()


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=lambda syntax: syntax.name)
def test_compressed_frames_are_the_same(syntax):
    values = np.stack([np.kron(GREY, np.ones((8, 8), np.uint16)), np.kron(4095 - GREY, np.ones((8, 8), np.uint16))])
    content = compressed(values, syntax)
    assert registry.frames(content) == 2
    for k in (0, 1):
        np.testing.assert_array_equal(registry.read(content, k).values, values[k])


def test_compressed_data_of_another_size_is_not_decompressed():
    content = bytearray(compressed(np.kron(GREY, np.ones((8, 8), np.uint16)), JPEG2000Lossless))
    at = content.index(b"\xff\x4f\xff\x51") + 8
    content[at : at + 8] = (40_000).to_bytes(4, "big") * 2
    refused(bytes(content), "48 x 40 pixels, its compressed data 40000 x 40000")


def test_videos_are_refused():
    made = pydicom.dcmread(io.BytesIO(dicom(GREY)))
    made.file_meta.TransferSyntaxUID = MPEG2MPML
    made.PixelData = encapsulate([b"1234"])
    stream = io.BytesIO()
    made.save_as(stream)
    refused(stream.getvalue(), "a video .*MPEG2")


def test_a_suffix_is_enough_for_old_and_encrypted_files(tmp_path):
    file = tmp_path / "a.dcm"
    file.write_bytes(b"\x30\x82\x01\x00" + dicom_module.ENVELOPED + bytes(400))
    refused(file, "encrypted")
    file.write_bytes(b"no image at all")
    refused(file, "not a DICOM file|without an image")
    made = dicom(GREY, bits=12)
    file.write_bytes(made[132:])
    np.testing.assert_array_equal(registry.read(file).values, GREY)


def test_a_file_that_inflates_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(dicom_module, "MOST_BYTES", 1 << 20)
    file = next(file for file in DICOMS if file.name == "image_dfl.dcm")
    content = file.read_bytes()
    meta = pydicom.dcmread(file, stop_before_pixels=True).file_meta
    length = 132 + 12 + meta.FileMetaInformationGroupLength
    assert zlib.decompress(content[length:], -15)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    refused(content[:length] + packer.compress(bytes(1 << 22)) + packer.flush(), "deflated from more bytes")


def test_a_header_of_too_many_frames_is_refused():
    with pytest.raises(UnreadableImageError, match="declares 99999 images"):
        registry.frames(dicom(GREY, NumberOfFrames=99999))
    with pytest.raises(UnreadableImageError, match="declares 2000000000 images"):
        registry.frames(dicom(GREY, NumberOfFrames=2_000_000_000))
