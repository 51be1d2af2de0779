"""The original DICOM files of prepared studies, read again in the way in which a model in use reads them."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.data.annotations import IMAGES
from pipeline.data.frontal import study_files
from pipeline.data.reader import Reader, reading_processes
from pipeline.dicom.radiograph import Radiograph
from pipeline.errors import UserError
from pipeline.params import Params


def read_originals(params: Params, patient_ids: Iterable[str]) -> Iterator[Radiograph]:
    """Yield the radiographs of these studies, in their order.

    Raises:
        UserError: a study cannot be read. It could be read when it was prepared, so its file or the decoders have
            changed since. Without this study, a comparison would no longer be on the same studies.
    """
    files = study_files(Path(params.data.dir) / IMAGES, list(patient_ids))
    with Reader(reading_processes(), params.data.study_seconds) as reader:
        for path, outcome in zip(files, reader.read_each(files), strict=True):
            if not isinstance(outcome, Radiograph):
                reason = outcome.strerror if isinstance(outcome, OSError) else outcome
                raise UserError(
                    f"{path}: {reason}; it could be read when it was prepared; run `dvc repro preprocess` first"
                )
            yield outcome
