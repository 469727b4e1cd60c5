"""Moves users from version to version by the kernel's packet filter: nftables text, and nothing else.

Each version listens on a port of its own, its slot. The table ``inet waybill`` sends connections that come for the
public port to the slot of the current version; the kernel remembers for each established connection where it went, so
a switch only concerns new ones. Each service has a chain that holds its slot, and ``ports`` maps public ports to
chains: that way one transaction switches one service without knowing the others, can be repeated, and is refused by
the kernel when the port belongs to another service already. No other table is touched. See docs/adr/0006.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

import msgspec

from waybill.core.errors import ConflictError, InvalidInputError

SLOTS = range(31000, 32000)
"""Below the range from which Linux takes the ports of outgoing connections (32768 and up): none is in the way."""

_KEY = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}/[a-z0-9][a-z0-9._-]{0,62}")

# Local connections pass ``output``, all others ``prerouting``. ``fib`` leaves alone what is on its way to other
# machines. From outside a slot is reached by a redirect or not at all.
_SKELETON = f"""\
add table inet waybill
add map inet waybill ports {{ type inet_service : verdict; }}
add chain inet waybill incoming {{ type nat hook prerouting priority dstnat; policy accept; }}
add chain inet waybill local {{ type nat hook output priority -100; policy accept; }}
add chain inet waybill guard {{ type filter hook input priority filter; policy accept; }}
flush chain inet waybill incoming
flush chain inet waybill local
flush chain inet waybill guard
add rule inet waybill incoming fib daddr type local tcp dport vmap @ports
add rule inet waybill local fib daddr type local tcp dport vmap @ports
add rule inet waybill guard iifname != "lo" tcp dport {SLOTS[0]}-{SLOTS[-1]} ct state new ct status ! dnat drop
"""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """New connections to ``port`` go to ``slot``.

    Attributes:
        key: ``service/environment`` that has the port.
        port: The port that users connect to.
        slot: The port that its current version listens on.
    """

    key: str
    port: int
    slot: int


def allocate(used: Collection[int], after: int = 0) -> int:
    """A slot that no version has, the next one after ``after`` so that a slot rests before it is used again.

    Args:
        used: Slots of all versions on the host that run, drain or will be started again.
        after: The slot that was given last.

    Raises:
        ConflictError: All are taken.
    """
    start = after - SLOTS.start + 1 if after in SLOTS else 0
    for step in range(len(SLOTS)):
        slot = SLOTS[(start + step) % len(SLOTS)]
        if slot not in used:
            return slot
    raise ConflictError(
        f"all {len(SLOTS)} slots of this host are taken.", "Remove services that are not needed any more."
    )


def switch(route: Route) -> str:
    """One transaction after which new connections go to the route's slot; repeating it changes nothing."""
    return _SKELETON + _route(route)


def restore(routes: Iterable[Route]) -> str:
    """One transaction that makes the whole table anew, for a host that has booted or whose rules were flushed."""
    return "add table inet waybill\ndelete table inet waybill\n" + _SKELETON + "".join(map(_route, routes))


def withdraw(key: str, port: int, *, last: bool) -> str:
    """One transaction after which the service does not have the port any more; nft refuses it when another one has it.

    Args:
        key: ``service/environment``.
        port: The public port.
        last: Whether it is the only port of the service, which then leaves no trace.
    """
    chain = _chain(key)
    # Adding the element first makes the deletion fail, and with it the whole, where the port is another service's.
    text = f"add chain inet waybill {chain}\n{_element('add', port, chain)}{_element('delete', port)}"
    end = f"flush chain inet waybill {chain}\ndelete chain inet waybill {chain}\n" if last else ""
    return _SKELETON + text + end


def _route(route: Route) -> str:
    if route.slot not in SLOTS:
        raise InvalidInputError(f"{route.key} has slot {route.slot}, which is not in {SLOTS[0]}-{SLOTS[-1]}.")
    chain = _chain(route.key)
    return (
        f"add chain inet waybill {chain}\n"
        f"flush chain inet waybill {chain}\n"
        f"add rule inet waybill {chain} meta l4proto tcp redirect to :{route.slot}\n"
        f"{_element('add', route.port, chain)}"
    )


def _element(verb: str, port: int, chain: str = "") -> str:
    if not 1 <= port <= 65535 or port in SLOTS:
        raise InvalidInputError(
            f"{port} cannot be a public port.", f"Take one of 1-65535 outside {SLOTS[0]}-{SLOTS[-1]}."
        )
    verdict = f" : jump {chain}" if chain else ""
    return f"{verb} element inet waybill ports {{ {port}{verdict} }}\n"


def _chain(key: str) -> str:
    if _KEY.fullmatch(key) is None:
        raise InvalidInputError(f"{key!r} is not service/environment in lower-case letters, digits, '.', '_' and '-'.")
    return f"to_{key}"
