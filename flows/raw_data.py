"""Comparison of the raw data folder with its ``.dvc`` file."""

import json
from pathlib import Path

from pipeline.documents import read_yaml
from pipeline.dvc.command import changed, read_status
from pipeline.errors import UserError
from pipeline.files import temporary_folder, write_text
from pipeline.params import load_params

RAW_DATA = "data/rsna"
# A file that names the recorded version whose files were last found to match their digests.
VERIFIED = Path(".pneumoflow/verified_data")


def raw_data_state() -> str:
    """Compare the raw data folder with its ``.dvc`` file: return ``unchanged``, ``missing`` or ``changed``.

    Data elsewhere (``data.dir``) have no such file: they count as unchanged, and DVC compares them at each stage.
    """
    if load_params().data.dir != RAW_DATA:
        return "unchanged"
    if Path(RAW_DATA).is_symlink():
        target = Path(RAW_DATA).readlink()
        raise UserError(f"{RAW_DATA}: a symbolic link, which DVC cannot add; set data.dir to {target} in params.yaml")
    if not Path(f"{RAW_DATA}.dvc").exists():
        raise UserError(f"{RAW_DATA}.dvc: no such file; put a data set into {RAW_DATA} and run `dvc add {RAW_DATA}`")
    if not Path(RAW_DATA).exists():
        return "missing"
    status = changed(f"{RAW_DATA}.dvc")
    # 'not in cache' means that the folder is as recorded, and only DVC's copy is gone.
    return "changed" if "modified" in json.dumps(status) else "unchanged"


def verify_raw_data() -> None:
    """Compare all files with the MD5 digests recorded in ``data/rsna.dvc``, once for each version of the data.

    DVC does not check the files that a remote sends, and later compares only their times and sizes. It would
    report data from a damaged remote as unchanged.

    Raises:
        UserError: a file differs.
    """
    if load_params().data.dir != RAW_DATA:
        return
    recorded = str(read_yaml(Path(f"{RAW_DATA}.dvc"))["outs"][0]["md5"])
    if VERIFIED.exists() and VERIFIED.read_text(encoding="utf-8").strip() == recorded:
        return
    with temporary_folder() as folder:
        # With an empty folder for its records of files, DVC reads all files.
        afresh = {"DVC_SITE_CACHE_DIR": str(folder)}
        if "modified" in json.dumps(changed(f"{RAW_DATA}.dvc", afresh)):
            uncommitted = (
                read_status(["data", "status", "--granular"], afresh).get("uncommitted", {}).get("modified", [])
            )
            names = [name for name in uncommitted if name.startswith(f"{RAW_DATA}/") and not name.endswith("/")]
            raise UserError(
                f"{', '.join(names[:3])} ({len(names)} in all): differ from {RAW_DATA}.dvc: damaged here or in"
                f" the remote; mend the remote, remove {RAW_DATA} and DVC's cache (`dvc cache dir`), and"
                " start again"
            )
    write_text(VERIFIED, f"{recorded}\n")
