"""Loopback addresses are never reached through a proxy, whatever the variables of the shell say."""

import os
from collections.abc import Mapping

_HOSTS = ("127.0.0.1", "localhost", "::1")
_NAMES = ("no_proxy", "NO_PROXY")


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with loopback among the hosts that are reached directly; other hosts are kept."""
    # A program that reads only one of the two variables sees the hosts of both.
    listed = ",".join(environment.get(name, "") for name in _NAMES)
    hosts = [host.strip() for host in listed.split(",") if host.strip()]
    if "*" in hosts:
        return dict(environment)
    joined = ",".join(dict.fromkeys([*hosts, *_HOSTS]))
    return {**environment, **dict.fromkeys(_NAMES, joined)}


def bypass_proxy() -> None:
    """Exempt loopback from proxies in the environment of this process and of those that it starts."""
    os.environ.update(without_proxy(os.environ))
