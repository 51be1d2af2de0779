"""Signed models: used if the trusted key has signed them and nothing was changed since, and refused otherwise."""

import json
import subprocess

import pytest

from pipeline.delivery.model_file import load_model, save_model
from pipeline.delivery.signature import SIGNING_KEY, TRUSTED_KEY
from pipeline.errors import UserError


def keys(folder, name):
    """Make a pair of keys as the documents tell; return the files of the private and the public one."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


@pytest.fixture
def ours(tmp_path, monkeypatch):
    private, public = keys(tmp_path, "ours")
    monkeypatch.setenv(SIGNING_KEY, str(private))
    monkeypatch.setenv(TRUSTED_KEY, str(public))
    return private, public


@pytest.fixture
def signed_model(ours, tiny_model, tmp_path, monkeypatch):
    monkeypatch.delenv(TRUSTED_KEY)
    save_model(tmp_path / "signed", *load_model(tiny_model))
    monkeypatch.setenv(TRUSTED_KEY, str(ours[1]))
    return tmp_path / "signed"


def test_a_signed_model_is_used(signed_model, tmp_path):
    model, config = load_model(signed_model)
    assert config.signature
    save_model(tmp_path / "again", model, config)
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (signed_model / name).read_bytes()


def test_without_a_key_the_files_are_as_before(tiny_model, tmp_path, monkeypatch):
    for name in (SIGNING_KEY, TRUSTED_KEY):
        monkeypatch.delenv(name, raising=False)
    save_model(tmp_path / "plain", *load_model(tiny_model))
    assert "signature" not in json.loads((tmp_path / "plain/model.json").read_text())


def test_an_unsigned_model_is_refused(ours, tiny_model):
    with pytest.raises(UserError, match=r"model\.json: not signed; PNEUMOFLOW_TRUSTED_KEY is set"):
        load_model(tiny_model)


def test_any_change_is_noticed(signed_model, write_config):
    def lower(config):
        config["operating_threshold"] = 0.01

    good = (signed_model / "model.json").read_text()
    with pytest.raises(UserError, match="or it or model.safetensors was changed since"):
        load_model(write_config(signed_model, lower))
    (signed_model / "model.json").write_text(good)
    weights = bytearray((signed_model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (signed_model / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"or it or model\.safetensors was changed since"):
        load_model(signed_model)


@pytest.mark.parametrize("text", ["", "not base64", "AAAA"])
def test_a_signature_that_is_none(signed_model, write_config, text):
    with pytest.raises(UserError, match="not signed"):
        load_model(write_config(signed_model, lambda config: config.update(signature=text)))


def test_the_signature_of_another_key_is_refused(signed_model, tmp_path, monkeypatch):
    monkeypatch.setenv(TRUSTED_KEY, str(keys(tmp_path, "theirs")[1]))
    with pytest.raises(UserError, match=r"not signed by the key of PNEUMOFLOW_TRUSTED_KEY \(.*theirs"):
        load_model(signed_model)


def test_keys_that_cannot_be_used_are_one_line(signed_model, ours, tmp_path, monkeypatch):
    model, config = load_model(signed_model)
    private, public = ours
    for variable, call, wrong in (
        (SIGNING_KEY, lambda: save_model(tmp_path / "x", model, config), public),
        (TRUSTED_KEY, lambda: load_model(signed_model), private),
    ):
        monkeypatch.setenv(variable, str(wrong))
        with pytest.raises(UserError, match=f"{variable} = .*: not a (private|public) Ed25519 key in PEM format"):
            call()
        monkeypatch.setenv(variable, str(tmp_path / "nowhere"))
        with pytest.raises(UserError, match=f"{variable} = .*nowhere: No such file"):
            call()
        monkeypatch.setenv(variable, str(private if variable == SIGNING_KEY else public))
    rsa = tmp_path / "rsa.pem"
    subprocess.run(["openssl", "genpkey", "-algorithm", "rsa", "-out", rsa], check=True, capture_output=True)
    monkeypatch.setenv(SIGNING_KEY, str(rsa))
    with pytest.raises(UserError, match="not a private Ed25519 key"):
        save_model(tmp_path / "x", model, config)
