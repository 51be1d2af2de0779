"""Each command of each document, in the document's order, as a reader would type it."""

import contextlib
import json
import re
import shutil
import subprocess
import urllib.request

import pytest
import torch
import torchvision
import yaml

from tests.conftest import REPOSITORY, project_environment
from tests.documents import DOCUMENTS, Walk, commands, first_lines_of_others, walk, walked
from tests.flows.conftest import free_port, link_environment, wait_for_server
from tests.flows.terminal import Terminal
from tests.waiting import wait_until

pytestmark = pytest.mark.timeout(900)

POST = "(echo dicom;"
THIS_FILE = "tests/flows/test_commands_of_documents.py"
CI = ".github/workflows/check.yml"
INSTALLED = "it would change the packages that the tests run with"


@pytest.fixture
def page(request):
    made = Walk(request.param)
    yield made
    made.end()


class Shell:
    """A user's shell in a folder."""

    def __init__(self, folder, **env):
        self.folder = folder
        who = {f"GIT_{role}_{key}": "test@localhost" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
        self.env = project_environment(folder, PYTHONPATH=str(folder), **who, **env)

    def run(self, command):
        """Run a command to its end; return all that it prints."""
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    @contextlib.contextmanager
    def served(self, command, says):
        """Run a server in a terminal from where it prints ``says`` until Ctrl+C; give the terminal."""
        terminal = Terminal(["bash", "-c", f"exec env {command}"], self.folder, self.env)
        try:
            terminal.wait_for(lambda: says in terminal.text)
            yield terminal
            terminal.press_ctrl_c()
            terminal.wait(60)
        finally:
            terminal.end()

    def read(self, name):
        return (self.folder / name).read_text()

    def edit_params(self, section, **values):
        params = yaml.safe_load(self.read("params.yaml"))
        params[section] |= values
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params))


@pytest.fixture
def clone(tmp_path, small_params):
    """Clone the repository as README says; its params are small, and its .venv is that of the tests."""
    origin = tmp_path / "origin"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (REPOSITORY / name).exists():
            (origin / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, origin / name)
    (origin / "params.yaml").write_text(yaml.safe_dump(small_params))
    Shell(origin).run("git init -q && git add . && git commit -qm start")
    (command,) = [one for one in commands((REPOSITORY / "README.md").read_text()) if one.startswith("git clone")]
    subprocess.run(["bash", "-c", command.replace("<this repository>", str(origin))], cwd=tmp_path, check=True)
    folder = tmp_path / "pneumoflow"
    link_environment(folder)
    return folder


def ran(said):
    return re.findall(r"Running stage '(\w+)'", said)


def images_of(folder):
    return sorted((folder / "data/rsna/stage_2_train_images").iterdir())


def test_each_document_with_commands_is_walked_through():
    shown = {str(path.relative_to(REPOSITORY)) for path in DOCUMENTS if commands(path.read_text())}
    assert shown == walked()


BLOCKS = """Text, and `dvc pull`

    dvc repro    # all
    (echo a; b) |
      curl x

    data/rsna/
      x.csv

    python - <<'EOF'
    a = 1
    EOF
    cd x

```
pip a \\
  b
```
"""


def test_no_commands_are_taken_for_something_else():
    others = [line for path in DOCUMENTS for line in first_lines_of_others(path.read_text())]
    known = ("data/rsna/", "params.yaml, profiles/", "classes: ", '{"predictions"')
    assert [line for line in others if not line.startswith(known)] == []
    assert len(others) >= len(known)


def test_commands_are_found():
    assert commands(BLOCKS) == [
        "dvc repro    # all",
        "(echo a; b) |\n  curl x",
        "python - <<'EOF'\na = 1\nEOF",
        "cd x",
        "pip a \\\n  b",
    ]
    assert first_lines_of_others(BLOCKS) == ["data/rsna/"]


@pytest.mark.slow
@walk("docs/tutorial.md")
def test_the_tutorial(page, clone):
    port = free_port()
    shell = Shell(clone, MLFLOW_PORT=str(free_port()), PREFECT_PORT=str(free_port()))
    assert "Test split: 64 images" in shell.run(page.next("make demo"))
    assert "pneumoflow " in shell.run(page.next("source .venv/bin/activate") + " && pneumoflow --version")
    assert "nothing to do" in shell.run(page.next("python -m flows.training"))
    with shell.served(page.next("make ui"), "Ctrl+C ends both") as pages:
        addresses = re.findall(r"http://\S+", pages.text)
        assert len(addresses) == 3
        for address in addresses:
            assert urllib.request.urlopen(address, timeout=60).status == 200
    assert "map_50" in shell.run(page.next("dvc metrics show"))
    shell.run(page.next("git add dvc.lock reports/headline.json"))
    shell.run(page.next("git commit"))
    shell.edit_params("loss", gamma=1.0)
    assert ran(shell.run(page.next("dvc repro"))) == ["train", "evaluate"]
    assert "map_50" in shell.run(page.next("dvc metrics diff"))
    assert "against the champion" in shell.read("reports/report.html")
    assert "rsna_score" in shell.run(page.next("pneumoflow promote"))
    shell.run(page.next("pneumoflow predict"))
    assert len(list((clone / "predictions").rglob("*.jpg"))) == len(images_of(clone))
    shutil.copy(images_of(clone)[0], clone / "study.dcm")
    with shell.served(page.next("pneumoflow serve") + f" --port {port}", f"127.0.0.1:{port}"):
        post = page.next(POST)
        for name in ("docs/commands.md", "docs/formats.md"):
            assert post in commands((REPOSITORY / name).read_text())
        answer = wait_until(lambda: posted(shell, post.replace(":5001", f":{port}")))
    assert {"PredictionString", "boxes", "scores", "image_score"} <= answer["predictions"][0].keys()
    shell.run(page.next("pneumoflow queue"))
    assert len(list((clone / "queue/images").iterdir())) == 10
    assert "removed: " in shell.run(page.next("make clean"))
    assert not (clone / "models").exists()


def posted(shell, command):
    """Return the answer of a server, or None as long as it does not answer."""
    done = subprocess.run(["bash", "-c", command], cwd=shell.folder, capture_output=True, text=True, check=False)
    return json.loads(done.stdout) if done.stdout else None


@pytest.mark.slow
@walk("README.md")
def test_the_readme(page, copy):
    shell = Shell(copy)
    page.run_by("git clone", THIS_FILE)
    for target in ("demo", "ui"):
        page.run_by(f"make {target}", THIS_FILE)
    for target in ("test", "check"):
        page.run_by(f"make {target}", CI)
    page.run_by("make clean", THIS_FILE)
    page.cannot_run("python3 -m venv .venv", "it would put the tests' own .venv aside")
    page.cannot_run(".venv/bin/pip install -c constraints.txt --index-url", "it would install PyTorch once more")
    page.cannot_run(".venv/bin/pip install -c constraints.txt -e '.[dev]'", "it would install everything once more")
    assert "studies: 60" in shell.run(page.next("pneumoflow check data/rsna"))
    assert (copy / "reports/data.html").exists()
    shell.run(page.next("dvc add data/rsna"))
    assert "up to date" in shell.run(page.next("dvc repro"))


@pytest.mark.slow
@walk("docs/data.md")
def test_own_data(page, copy, tmp_path):
    shell, away = Shell(copy), tmp_path / "away"
    importing, with_images, export = (page.next(f"pneumoflow {name}") for name in ("import", "import", "export-labels"))
    shell.run(export)
    shutil.copytree(copy / "data/rsna", away)
    for command in (
        importing.replace("SOURCE", str(away)),
        with_images.replace("pngs", f"{away}/stage_2_train_images"),
    ):
        shutil.rmtree(copy / "data/rsna")
        assert "60 studies" in shell.run(command)
        assert len(images_of(copy)) == 60
    shutil.rmtree(copy / "data/rsna")
    shutil.copytree(away, copy / "data/rsna")
    shell.run(page.next("pneumoflow queue").replace("--count 50", "--count 5"))
    corrected = json.loads(shell.read("queue/coco.json"))
    corrected["annotations"] = corrected["annotations"][:-1]
    (copy / "export.json").write_text(json.dumps(corrected))
    assert "5 studies" in shell.run(page.next("pneumoflow import export.json"))
    shell.run(page.next("pneumoflow labels-diff"))
    page.cannot_run("pip install -c constraints.txt -e '.[kaggle]'", INSTALLED)
    shell.run(page.next("rm -r data/rsna"))
    page.cannot_run("pneumoflow download", "it needs an account of Kaggle's; tests/sources/test_kaggle.py has the rest")
    shutil.copytree(away, copy / "data/rsna")
    shell.run(page.next("dvc add data/rsna"))
    shutil.copytree(REPOSITORY / "profiles", copy / "profiles")
    shell.run(page.next("cp profiles/rsna.yaml params.yaml"))
    page.cannot_run("dvc repro", "with that profile it needs a GPU")
    assert "train" in shell.run("dvc repro --dry")


@pytest.mark.long
@walk("docs/operations.md")
def test_operations(page, copy, tmp_path):
    port = free_port()
    # Prefect asks no questions then, which it does on a terminal.
    shell = Shell(copy, PREFECT_CLI_PROMPT="false", PREFECT_SERVER_API_PORT=str(port))
    shell.env["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
    with shell.served(page.next("prefect server start"), "Check out the dashboard") as server:
        wait_for_server(f"{shell.env['PREFECT_API_URL']}/health", server.process)
        deploy_and_work(page, shell, tmp_path)
        sign_models(page, shell)
        serve_an_archive(page, shell)


def deploy_and_work(page, shell, folder):
    for command in ("work-pool create local", "deploy --all"):
        shell.run(page.next(f"prefect {command}"))
    with shell.served(page.next("prefect worker start --pool local"), "started"):
        run = without_comment(page.next("prefect deployment run training/nightly"))
        assert "Completed" in shell.run(f"{run} --watch")
    with shell.served(page.next("PNEUMOFLOW_WORKSPACE=").replace("/srv", str(folder)), "started"):
        pass


def sign_models(page, shell):
    for _ in range(2):
        shell.run(page.next("openssl"))
    shell.edit_params("loss", gamma=1.5)
    assert ran(shell.run(page.next("PNEUMOFLOW_SIGNING_KEY=signing.pem dvc repro"))) == ["train", "evaluate"]
    shutil.copy(images_of(shell.folder)[0], shell.folder / "STUDY.dcm")
    predict = page.next("PNEUMOFLOW_TRUSTED_KEY=trusted.pem pneumoflow predict")
    shell.run(predict)
    model = shell.folder / "models/model.json"
    model.write_text(json.dumps(json.loads(model.read_text()) | {"best_epoch": 7}))
    with pytest.raises(AssertionError, match=r"error: models.*sign"):
        shell.run(predict)


def serve_an_archive(page, shell):
    port = free_port()
    page.cannot_run("pip install -c constraints.txt -e '.[archive]'", INSTALLED)
    with shell.served(f"{without_comment(page.next('python -m flows.receive'))} --port {port}", "receives at"):
        pass
    scoring = without_comment(page.next("python -m flows.inference")).replace("pacs.local:104", f"127.0.0.1:{port}")
    with shell.served(scoring, "the flow inference runs every 60 s") as served:
        wait_until(lambda: "inference/inbox" in shell.run("prefect deployment ls"), process=served.process)


def without_comment(command):
    return command.split(" #")[0].rstrip()


@pytest.mark.slow
@walk("docs/params.md")
def test_weights_trained_elsewhere(page, tmp_path):
    page.cannot_run("python -c 'import torch, torchxrayvision", "it downloads the weights")
    network = torchvision.models.densenet121(num_classes=18)  # as torchxrayvision's, but for its input
    network.features.conv0 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    torch.save(network.state_dict(), tmp_path / "chex.pt")
    Shell(tmp_path).run(page.next("pneumoflow convert-weights chex.pt"))
    assert (tmp_path / "weights/chex/model.safetensors").exists()


@pytest.mark.long
@walk("docs/team.md")
def test_a_team(page, tmp_path):
    team = "tests/deploy/test_team.py"
    shell = Shell(tmp_path, XDG_CONFIG_DIRS=str(tmp_path / "etc"))
    page.cannot_run("pip install -c constraints.txt -e '.[team]'", INSTALLED)
    shutil.copytree(REPOSITORY / "deploy", tmp_path / "deploy")
    enter = page.next("cd deploy") + " && "
    shell.run(enter + page.next("sh make_env.sh"))
    assert "mlops.example.org" in shell.read("deploy/.env")
    shell.run(enter + page.next("mkdir tls"))
    page.cannot_run("docker compose up -d", "it needs a container engine; tests/deploy/test_files.py checks the files")
    page.run_by("dvc remote add -d team", team)
    page.run_by("pneumoflow doctor", team)
    for start in ("work-pool create", "deploy --all", "automation create"):
        page.run_by(f"prefect {start}", team)
    page.run_by("prefect deployment run", THIS_FILE)
    add_user(page.next("python - <<'EOF'"), tmp_path)
    caching = [page.next("dvc config --system cache.") for _ in range(3)]
    for command in caching:
        shell.run(command.replace("/srv", str(tmp_path)))
    shell.run("git init -q && dvc init -q")
    assert shell.run("dvc cache dir").strip() == f"{tmp_path}/dvc-cache"


def add_user(command, folder):
    """Run the command that gives a person an account, on a server with accounts; check that the person may write."""
    port, password = free_port(), "a long password"
    address = f"http://127.0.0.1:{port}"
    shell = Shell(
        folder,
        MLFLOW_TRACKING_USERNAME="admin", MLFLOW_TRACKING_PASSWORD=password, MLFLOW_ADMIN_PASSWORD=password,
        MLFLOW_ACCOUNTS_URI=f"sqlite:///{folder}/accounts.db", MLFLOW_FLASK_SERVER_SECRET_KEY="secret",
    )  # fmt: skip
    script = f"sh {REPOSITORY}/deploy/mlflow.sh --port {port} --backend-store-uri sqlite:///{folder}/records.db"
    with shell.served(script, "startup complete"):
        prepare = f"from deploy.prepare import make_accounts; make_accounts('{address}', '{password}')"
        shell.run(f'python -c "{prepare}"')
        shell.run(command.replace("https://mlops.example.org:5000", address))
        as_ada = f"import mlflow; print(mlflow.MlflowClient('{address}').create_experiment('ada'))"
        shell.env["MLFLOW_TRACKING_USERNAME"] = "ada"
        assert shell.run(f'python -c "{as_ada}"').strip().isdecimal()


@walk("docs/commands.md")
def test_serving(page):
    page.run_by(POST, THIS_FILE)


@walk("docs/formats.md")
def test_formats(page):
    page.cannot_run("trtexec", "it needs a GPU")
    page.run_by(POST, THIS_FILE)


@walk("docs/index.md")
def test_the_first_page(page):
    for start in ("git clone", "make demo", "make ui"):
        page.run_by(start, THIS_FILE)


@walk("CONTRIBUTING.md")
def test_contributing(page):
    page.run_by("make check", CI)
    page.run_by("make test", CI)
    page.run_by("make docs", CI)
