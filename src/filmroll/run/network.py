"""Where the processes of a run listen: at this machine's address in the network that is configured."""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv4Network

import psutil

from filmroll.errors import ConfigError

HOST_NAME = "hostname"
"""Stands for the address that the machine's own name resolves to."""


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


def _address_of_name() -> str:
    name = socket.gethostname()
    try:
        return socket.gethostbyname(name)
    except OSError as error:
        raise ConfigError(
            f"the name of this machine, {name}, resolves to no address: {error.strerror}",
            remedy="Let cluster.network name the machines' network, such as 10.0.0.0/16",
        ) from error
