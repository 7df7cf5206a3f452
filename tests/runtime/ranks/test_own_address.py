"""The address at which the other ranks of a job reach this process."""

import pytest

from esdmon.runtime.ranks.own_address import own_address


def test_the_address_is_that_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the interface that the environment names; on one host it is the loopback."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    assert own_address() == "127.0.0.1"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert own_address() == "127.0.0.1"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    assert own_address() == "127.0.0.1"
