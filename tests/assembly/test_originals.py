import numpy as np
import pytest

from pipeline.assembly.originals import read_originals
from pipeline.data.annotations import IMAGES
from pipeline.dicom.radiograph import read_radiograph
from pipeline.errors import UserError
from pipeline.params import Params


def test_studies_are_read_again_in_their_order(small_params, rsna):
    params = Params.model_validate(small_params)
    paths = sorted((rsna / IMAGES).glob("*.dcm"))[5:0:-1]
    found = list(read_originals(params, [path.stem for path in paths]))
    for one, path in zip(found, paths, strict=True):
        np.testing.assert_array_equal(one.levels, read_radiograph(path).levels)


def test_one_that_can_no_longer_be_read_ends_it_in_one_line(small_params, rsna):
    params = Params.model_validate(small_params)
    paths = sorted((rsna / IMAGES).glob("*.dcm"))[:3]
    paths[1].write_bytes(b"no study")
    with pytest.raises(UserError, match=rf"{paths[1].name}: .*; it could be read when it was prepared") as caught:
        list(read_originals(params, [path.stem for path in paths]))
    assert "\n" not in str(caught.value)
    paths[0].unlink()
    with pytest.raises(UserError, match=f"{paths[0].stem}: has no file; one is needed"):
        list(read_originals(params, [path.stem for path in paths]))
