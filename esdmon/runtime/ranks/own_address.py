"""Find the address at which the other ranks of a job reach this process."""

import os
import socket
import struct
from contextlib import suppress

_ELSEWHERE = ("192.0.2.1", 9)  # an address that is never used (RFC 5737); it has the same route as other hosts
_LOOPBACK = (None, "", "localhost", "127.0.0.1", "::1")


def own_address() -> str:
    """Return the address at which the other ranks of the job reach this one.

    It is the address of the interface that `GLOO_SOCKET_IFNAME` names. Without one it is the address from which this
    host reaches `MASTER_ADDR`; or, where `MASTER_ADDR` is this host and the job has others, reaches these.
    """
    named = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    if named and (found := _address_of(named)):
        return found
    address = _source_of((os.environ.get("MASTER_ADDR") or "127.0.0.1", int(os.environ.get("MASTER_PORT") or 9)))
    has_others = os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE")
    if address.startswith(("127.", "::1")) and has_others and os.environ.get("MASTER_ADDR") not in _LOOPBACK:
        return _source_of(_ELSEWHERE)
    return address


def _address_of(interface: str) -> str:
    """Return the IPv4 address of a network interface; empty if it has none, or on other systems than Linux."""
    with suppress(Exception):
        from fcntl import ioctl  # noqa: PLC0415 -- not on Windows

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            request = struct.pack("256s", interface.encode()[:15])
            return socket.inet_ntoa(ioctl(probe.fileno(), 0x8915, request)[20:24])  # SIOCGIFADDR
    return ""


def _source_of(target: tuple[str, int]) -> str:
    """Return the address of this host from which packets to a target would be sent; it sends none."""
    with suppress(OSError):
        family, kind, _, _, address = socket.getaddrinfo(*target, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    return "127.0.0.1"
