"""Fetching what other people name: addresses that may be meant to reach what only this machine reaches.

A host name is resolved once, every address that it has must be public, and the connection goes to the address that was
checked, so that a second answer of the name server cannot lead elsewhere. Redirections are followed by hand, each
checked in the same way. Proxies are not used.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

from calotype.core.errors import InputError

REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class Rules:
    """What fetching from an address may take."""

    seconds: float = 20.0
    """From the first connection to the last byte, redirections included."""
    bytes: int = 32 * 2**20
    redirects: int = 5


def fetch(address: str, rules: Rules = Rules()) -> bytes:
    """What an ``http(s)://`` address of the public internet answers; ``InputError`` says why there is nothing."""
    deadline = time.monotonic() + rules.seconds
    for _ in range(rules.redirects + 1):
        parts = _checked(address)
        try:
            answer = _ask(parts, public_address(parts), deadline, rules)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"The address {address!r} could not be read: {error}.") from error
        if isinstance(answer, bytes):
            return answer
        address = urljoin(address, answer)
    raise InputError(f"The address {address!r} was reached by more than {rules.redirects} redirections.")


def _checked(address: str) -> SplitResult:
    """The parts of an address that may be asked."""
    try:
        parts = urlsplit(address)
        port = parts.port
    except ValueError as error:
        raise InputError(f"{address!r} is not an address: {error}.") from None
    if parts.scheme not in ("http", "https"):
        raise InputError(
            f"The address {address!r} begins with {parts.scheme + ':' if parts.scheme else 'no scheme'!r}: only "
            f"http:// and https:// are read."
        )
    if not parts.hostname or parts.username is not None or port == 0:
        raise InputError(
            f"The address {address!r} must name a host, and no user: give it as https://host/path."
        )
    if any(ord(letter) <= 32 or ord(letter) == 127 for letter in address):
        raise InputError(
            f"The address {address!r} holds spaces or control characters: write them as %20 and so on."
        )
    return parts


def public_address(parts: SplitResult) -> str:
    """The address to connect to; ``InputError`` if the host has none or any that is not of the public internet."""
    host = parts.hostname or ""
    try:
        found = socket.getaddrinfo(host, parts.port or parts.scheme, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(f"The host {host!r} could not be found: {error}.") from None
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not is_public(address):
            raise InputError(
                f"The host {host!r} is at {address}, which is not an address of the public internet, so nothing is "
                f"read from it."
            )
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an IP address is of the public internet, also where it wraps an older address."""
    try:
        number = ipaddress.ip_address(address.split("%")[0])
    except ValueError:
        return False
    if isinstance(number, ipaddress.IPv6Address):
        wrapped = number.ipv4_mapped or number.sixtofour or (number.teredo or (None, None))[1]
        if wrapped is None and number in ipaddress.ip_network("64:ff9b::/96"):  # NAT64, RFC 6052
            wrapped = ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)
        if wrapped is not None:
            return is_public(str(wrapped))
        if number.is_site_local:
            return False
    return number.is_global and not (number.is_multicast or number.is_reserved or number.is_unspecified)


def _ask(parts: SplitResult, address: str, deadline: float, rules: Rules) -> bytes | str:
    """The content, or where the host says that it is; the connection goes to ``address``."""
    host = parts.hostname or ""
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    connection = http.client.HTTPConnection(host, port)
    try:
        raw = socket.create_connection((address, port), timeout=_left(deadline, rules))
        connection.sock = (
            ssl.create_default_context().wrap_socket(raw, server_hostname=host) if secure else raw
        )
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"User-Agent": "calotype", "Accept": "image/*"})
        reply = connection.getresponse()
        if reply.status in REDIRECTS and reply.getheader("Location"):
            return str(reply.getheader("Location"))
        if reply.status != 200:
            raise InputError(f"The address {parts.geturl()!r} answered {reply.status} {reply.reason}.")
        data = bytearray()
        while piece := _piece(connection, reply, deadline, rules):
            data += piece
            if len(data) > rules.bytes:
                raise InputError(
                    f"What {parts.geturl()!r} answers is larger than {rules.bytes // 2**20} MiB."
                )
        return bytes(data)
    finally:
        connection.close()


def _piece(
    connection: http.client.HTTPConnection, reply: http.client.HTTPResponse, deadline: float, rules: Rules
) -> bytes:
    # a host that sends a byte now and then would never run into a time limit of single reads
    if connection.sock is not None:
        connection.sock.settimeout(_left(deadline, rules))
    else:
        _left(deadline, rules)
    return reply.read1(2**16)


def _left(deadline: float, rules: Rules) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"it took longer than {rules.seconds:g} seconds")
    return left
