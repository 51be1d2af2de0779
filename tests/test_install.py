"""How `make` installs: from the mirror that pip's settings name, by digest, also where no cache can be."""

import base64
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

WHEEL = "tiny-1.0-py3-none-any.whl"


@pytest.fixture
def mirror(tmp_path):
    """Serve an index of one package; return its address and the wheel's digest."""
    folder = tmp_path / "mirror" / "tiny"
    folder.mkdir(parents=True)
    files = {
        "tiny.py": b"number = 1\n",
        "tiny-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
        for name, content in files.items():
            wheel.writestr(name, content)
        wheel.writestr("tiny-1.0.dist-info/RECORD", "".join(_record(*file) for file in files.items()))
    (folder / "index.html").write_text(f'<a href="{WHEEL}">{WHEEL}</a>')
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(folder.parent))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", hashlib.sha256((folder / WHEEL).read_bytes()).hexdigest()
    server.shutdown()
    server.server_close()


def _record(name, content):
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}\n"


def install(folder, mirror, digest):
    """Install the package as the Makefile does, with a pip.conf that names the mirror and a HOME that nobody has."""
    subprocess.run([sys.executable, "-m", "venv", str(folder / ".venv")], check=True)
    shutil.copy(Path(sys.prefix, "bin/uv"), folder / ".venv/bin/uv")
    shutil.copy(REPOSITORY / "Makefile", folder)
    (folder / "pip.conf").write_text(f"[global]\nindex-url = {mirror}\n")
    (folder / "tiny.txt").write_text(f"tiny==1.0 --hash=sha256:{digest}\n")
    own = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_"))}
    env = own | {"PIP_CONFIG_FILE": str(folder / "pip.conf"), "HOME": "/proc/1/nobody"}
    target = "tiny:\n\t$(UV_INSTALL) --require-hashes --requirement tiny.txt"
    return subprocess.run(["make", "--eval", target, "tiny"], cwd=folder, env=env, capture_output=True, text=True)


def test_the_mirror_of_pip_is_used(tmp_path, mirror):
    done = install(tmp_path, *mirror)
    assert done.returncode == 0, done.stderr
    shown = subprocess.run(
        [tmp_path / ".venv/bin/python", "-c", "import tiny; print(tiny.number)"], capture_output=True
    )
    assert shown.stdout == b"1\n"


def test_another_digest_is_refused(tmp_path, mirror):
    done = install(tmp_path, mirror[0], "0" * 64)
    assert done.returncode != 0
    assert "Hash mismatch" in done.stderr
