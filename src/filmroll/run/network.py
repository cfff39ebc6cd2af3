"""Where the processes of a run listen: at this machine's address in the network that is configured."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network

import psutil

from filmroll.errors import ConfigError

HOST_NAME = "hostname"
"""Stands for the address that the machine's own name resolves to."""
LOOPBACK = "127.0.0.1"


def read_network(text: str) -> IPv4Network | None:
    """The network that is meant; None for `hostname`; a ValueError for anything else."""
    return None if text == HOST_NAME else IPv4Network(text)


def own_address(network: str) -> str:
    """This machine's address there, at which it listens and under which others find it."""
    wanted = read_network(network)
    if wanted is None:
        return _address_of_name()
    cards = psutil.net_if_addrs().values()
    every = [str(one.address) for card in cards for one in card if one.family == socket.AF_INET]
    for address in every:
        if IPv4Address(address) in wanted:
            return address
    raise ConfigError(
        f"{socket.gethostname()} has no address in cluster.network {network}; it has {', '.join(every) or 'none'}",
        remedy=f"Name a network that all machines of the run share, or {HOST_NAME!r}",
    )


def card_of(address: str) -> str:
    """What this system calls the network card that has this address of its own."""
    # Any address of the loopback network is the loopback card's, whether it is listed there or not.
    wanted = LOOPBACK if IPv4Address(address).is_loopback else address
    for name, held in psutil.net_if_addrs().items():
        if any(one.address == wanted for one in held):
            return str(name)
    raise ConfigError(
        f"no network card of {socket.gethostname()} has the address {address}",
        remedy="Let cluster.network name the machines' network, such as 10.0.0.0/16",
    )


def _address_of_name() -> str:
    name = socket.gethostname()
    try:
        return socket.gethostbyname(name)
    except OSError as error:
        raise ConfigError(
            f"the name of this machine, {name}, resolves to no address: {error.strerror}",
            remedy="Let cluster.network name the machines' network, such as 10.0.0.0/16",
        ) from error
