"""DICOM files written by the tests."""

import io

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid


def dicom(values, kind="MONOCHROME2", bits=None, syntax=ExplicitVRLittleEndian, **elements):
    """The bytes of a DICOM file of numbers (height, width), (frames, height, width) or (height, width, 3)."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = CTImageStorage
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["tests"])
    coloured = kind in ("RGB", "YBR_FULL")
    made.Rows, made.Columns = values.shape[:2] if coloured else values.shape[-2:]
    if values.ndim == 3 and not coloured:
        made.NumberOfFrames = len(values)
    made.SamplesPerPixel = 3 if coloured else 1
    if coloured:
        made.PlanarConfiguration = 0
    made.PhotometricInterpretation = kind
    made.BitsAllocated = 8 * values.dtype.itemsize
    made.BitsStored = bits or made.BitsAllocated
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(values.dtype.kind == "i")
    for name, value in elements.items():
        setattr(made, name, value)
    data = np.ascontiguousarray(values).tobytes()
    made.PixelData = data + bytes(len(data) % 2)
    made["PixelData"].VR = "OB" if made.BitsAllocated == 8 else "OW"
    stream = io.BytesIO()
    made.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def items(**elements):
    """A sequence of one item."""
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return [item]
