"""Changes of a DICOM file's header."""

import pydicom


def change(path, **values):
    """Save a study with other header values; None removes a value. Return the path."""
    dataset = pydicom.dcmread(path)
    for keyword, value in values.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    dataset.save_as(path)
    return path
