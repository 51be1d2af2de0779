"""The servers of deploy/compose.yaml as plain processes, with the same commands and variables, on free ports.

`docker-compose config` resolves the file; only names of hosts, ports and folders are replaced.
"""

import ipaddress
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.conftest import REPOSITORY
from tests.waiting import wait_until

DEPLOY = REPOSITORY / "deploy"
BIN = Path(sys.executable).parent
POSTGRES_BIN = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
PUBLIC = ("MLFLOW_PORT", "PREFECT_PORT", "S3_PORT")


def missing():
    """Return the programs that the servers need and this machine lacks."""
    found = {
        "PostgreSQL": POSTGRES_BIN,
        "nginx": shutil.which("nginx"),
        "weed": shutil.which("weed", path=str(BIN)),
        "docker-compose": shutil.which("docker-compose", path=str(BIN)),
    }
    return [name for name, path in found.items() if path is None]


def free_port():
    """Return a free port whose neighbour 10,000 above, where SeaweedFS puts gRPC, is free too."""
    for _ in range(100):
        with socket.socket() as low, socket.socket() as high:
            low.bind(("127.0.0.1", 0))
            port = low.getsockname()[1] % 20_000 + 20_000
            try:
                with socket.socket() as chosen:
                    chosen.bind(("127.0.0.1", port))
                high.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
    raise AssertionError("no free ports")


def make_env(folder, **settings):
    """Write the .env that make_env.sh prints, with other ports and folders; return its values."""
    printed = subprocess.run(
        ["sh", DEPLOY / "make_env.sh", "localhost"], check=True, capture_output=True, text=True
    ).stdout
    values = dict(line.split("=", 1) for line in printed.splitlines() if line and not line.startswith("#"))
    values |= {"TLS_FOLDER": str(folder / "tls")} | settings
    (folder / ".env").write_text("".join(f"{key}={value}\n" for key, value in values.items()))
    return values


def resolved(folder):
    """Return compose.yaml with the .env of a folder, all profiles included, as Docker Compose reads it."""
    command = [BIN / "docker-compose", "--env-file", folder / ".env", "--profile", "*", "-f", DEPLOY / "compose.yaml"]
    own = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    done = subprocess.run(
        [*command, "config", "--format", "json"], env=own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def make_certificates(folder):
    """Make an authority of our own, and a certificate for localhost: ca.crt, server.crt, server.key."""
    folder.mkdir()
    now = datetime.now(UTC)
    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a team's own authority")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])

    def certificate(name, public_key, extensions):
        builder = x509.CertificateBuilder(authority, name, public_key, x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=2))
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(authority_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    identifier = x509.SubjectKeyIdentifier.from_public_key(authority_key.public_key())
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    (folder / "ca.crt").write_bytes(
        certificate(
            authority,
            authority_key.public_key(),
            [(x509.BasicConstraints(True, 0), True), (identifier, False), (usage, True)],
        )
    )
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    (folder / "server.crt").write_bytes(certificate(subject, key.public_key(), [(names, False), (issuer, False)]))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "server.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, *private))


class Servers:
    """The servers of one team. Attributes: ``env``, the values of .env; ``folder``, where they keep their files."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        make_certificates(folder / "tls")
        inner = {"postgres:5432": free_port(), "s3:8333": free_port(), "mlflow:5000": free_port()}
        self._inner = inner | {"prefect:4200": free_port()}
        self.env = make_env(folder, **{name: str(free_port()) for name in PUBLIC})
        self._services = resolved(folder)["services"]
        self._processes = {}

    def _here(self, text):
        """Return a command's word or a variable's value as it must be on this machine."""
        for name, port in self._inner.items():
            default = name.split(":")[1]
            text = text.replace(name, f"127.0.0.1:{port}").replace(f"localhost:{default}", f"localhost:{port}")
            if text == default:
                text = str(port)
        places = {
            "0.0.0.0": "127.0.0.1",
            "/opt/pneumoflow": str(DEPLOY),
            "/etc/nginx/tls": str(self.folder / "tls"),
            "/etc/pneumoflow/ca.crt": str(self.folder / "tls" / "ca.crt"),
            "/backups": str(self.folder / "backups"),
            "-dir=/data": f"-dir={self.folder / 's3'}",
            "-s3.port=8333": f"-s3.port={self._inner['s3:8333']}",
            "-metricsPort=9324": f"-metricsPort={free_port()}",
        }
        for old, new in places.items():
            text = text.replace(old, new)
        return text

    def environment(self, service):
        """Return a service's variables, and of this process's own only where to find programs."""
        given = {key: self._here(value or "") for key, value in self._services[service].get("environment", {}).items()}
        if "PGHOST" in given:
            given |= {"PGHOST": "127.0.0.1", "PGPORT": str(self._inner["postgres:5432"])}
        home = self.folder / service
        home.mkdir(exist_ok=True)
        path = f"{BIN}:{POSTGRES_BIN}:{os.environ['PATH']}"
        return {
            "PATH": path,
            "HOME": str(home),
            "PREFECT_HOME": str(home),
            "TMPDIR": str(home),
            "LC_ALL": "C.UTF-8",
        } | given

    def _run(self, service, command):
        log = (self.folder / f"{service}.log").open("ab")
        return subprocess.Popen(
            command,
            env=self.environment(service),
            cwd=self.folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def command(self, service):
        """Return a service's command line, with the entry point of its image."""
        entry = self._services[service].get("entrypoint") or []
        return [self._here(word) for word in [*entry, *(self._services[service].get("command") or [])]]

    def start(self, service):
        """Start one server; it may take a while until it answers."""
        starts = {"postgres": self._postgres, "s3": self._s3, "nginx": self._nginx}
        command = starts.get(service, lambda: self.command(service))()
        self._processes[service] = self._run(service, command)

    def once(self, service, *command, timeout=240):
        """Run a service that ends by itself; return what it printed."""
        done = subprocess.run(
            [*command] or self.command(service),
            env=self.environment(service),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{service}: {done.stdout}{done.stderr}"
        return done.stdout

    def stop(self, service):
        """Stop one server and all its processes, at once."""
        process = self._processes.pop(service)
        # PostgreSQL's SIGQUIT is its immediate shutdown; after a SIGKILL its shared memory would stay.
        os.killpg(process.pid, signal.SIGQUIT if service == "postgres" else signal.SIGKILL)
        process.wait(timeout=60)

    def stop_all(self):
        """Stop what runs, the databases last."""
        for service in [*reversed(self._processes)]:
            self.stop(service)

    def start_all(self):
        """Start everything in the order of compose.yaml's dependencies, and wait until it answers."""
        self.start_stores()
        self.once("prefect-migration")
        self.start("mlflow")
        self.start("prefect")
        self.start("nginx")
        self.once("prepare")
        wait_until(lambda: self.answers("PREFECT_PORT", "/api/health"), 120)
        wait_until(lambda: self.answers("MLFLOW_PORT", "/health"), 120)

    def start_stores(self):
        """Start PostgreSQL, with empty databases, and the object store, and wait until both answer."""
        self.start("postgres")
        self.start("s3")
        self._until_postgres_answers()
        self._make_databases()
        wait_until(lambda: _listens(self._inner["s3:8333"]), 60, process=self._processes["s3"])

    def answers(self, port, path="/"):
        """Return whether the server behind one of the public ports says that it is well."""
        context = ssl.create_default_context(cafile=self.folder / "tls" / "ca.crt")
        try:
            address = f"https://localhost:{self.env[port]}{path}"
            with urllib.request.urlopen(address, context=context, timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def _postgres(self):
        data, port = self.folder / "database", self._inner["postgres:5432"]
        as_user = []
        if os.geteuid() == 0:
            # PostgreSQL refuses to run as root.
            as_user = ["runuser", "-u", "postgres", "--"]
            for path in (self.folder, *self.folder.parents[:-2]):
                path.chmod(path.stat().st_mode | 0o055)
        if not data.exists():
            data.mkdir()
            password = self.folder / "postgres_password"
            password.write_text(self.env["POSTGRES_PASSWORD"])
            if as_user:
                shutil.chown(data, "postgres")
                shutil.chown(password, "postgres")
            initdb = [POSTGRES_BIN / "initdb", "-D", data, "-U", "postgres", "--auth=scram-sha-256", "-N"]
            subprocess.run([*as_user, *initdb, f"--pwfile={password}"], check=True, capture_output=True, cwd="/")
        listen = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=", "-p", str(port)]
        return [*as_user, POSTGRES_BIN / "postgres", "-D", data, *listen]

    def _until_postgres_answers(self):
        ready = [POSTGRES_BIN / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self._inner["postgres:5432"])]
        wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, 60, process=self._processes["postgres"])

    def _make_databases(self):
        where = {"PGHOST": "127.0.0.1", "PGPORT": str(self._inner["postgres:5432"]), "PGUSER": "postgres"}
        environment = self.environment("postgres") | where | {"PGPASSWORD": self.env["POSTGRES_PASSWORD"]}
        subprocess.run(["sh", DEPLOY / "databases.sh"], env=environment, check=True)

    def _s3(self):
        (self.folder / "s3").mkdir(exist_ok=True)
        ports = [f"-{part}.port={free_port()}" for part in ("master", "volume", "filer")]
        return [*self.command("s3"), *ports]

    def _nginx(self):
        """Write nginx's configuration from the template; return its command."""
        inner = self.folder / "nginx.d"
        inner.mkdir(exist_ok=True)
        (inner / "pneumoflow.conf").write_text(fill_template(self.environment("nginx")))
        main = self.folder / "nginx.conf"
        main.write_text(
            f"pid {self.folder}/nginx.pid; daemon off; error_log stderr; worker_processes 1; events {{}}\n"
            f"http {{ access_log off; client_body_temp_path {self.folder}/body; proxy_temp_path {self.folder}/proxy;\n"
            f"include {inner}/*.conf; }}\n"
        )
        return ["nginx", "-c", main, "-p", self.folder]


def _listens(port):
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def fill_template(values):
    """Return nginx.conf.template with variables filled in, as the image of nginx does: those that are defined."""
    text = (DEPLOY / "nginx.conf.template").read_text()
    for name, value in values.items():
        text = text.replace(f"${{{name}}}", value)
    return text
