"""What must fit together in one service file, beyond what each key says for itself."""

from __future__ import annotations

import difflib
from itertools import combinations

from waybill.deploy.servicefile import Environment, Function
from waybill.deploy.servicefile_yaml import Faults, Node, shown


def check(environments: dict[str, Environment], functions: dict[str, Function], root: Node, faults: Faults) -> None:
    """Note what clashes.

    Args:
        environments: Those that were read without a fault.
        functions: Those that were read without a fault.
        root: The whole file, for names and places.
        faults: Where faults are noted.
    """
    nodes = root.get("environments") or root
    declared = [key.text for key, _ in declared_in.entries] if (declared_in := root.get("functions")) else []
    for name, environment in environments.items():
        node = nodes.get(name) or root
        _hooks(environment, node, declared, functions, faults)
        if environment.health and environment.run.port is None:
            what = "an HTTP path" if environment.health.path else "a TCP connection"
            place = node.get("health") or node
            faults.add(place, f"{node.where} checks {what}, yet its run has no port; add port to {node.where}.run.")
    for one, other in combinations(environments, 2):
        _pair(environments[one], environments[other], nodes, faults)


def _hooks(
    environment: Environment, node: Node, declared: list[str], functions: dict[str, Function], faults: Faults
) -> None:
    for hook in ("before", "after", "failed"):
        listed = node.get(hook)
        for item in listed.items if listed else ():
            if item.text not in declared:
                near = difflib.get_close_matches(item.text, declared, n=1)
                known = f"did you mean {near[0]!r}?" if near else f"declared: {', '.join(declared) or 'none'}."
                faults.add(item, f"{item.where} names the function {shown(item.text)}, which is not there; {known}")
            elif hook != "before" and item.text in functions and functions[item.text].once:
                faults.add(
                    item,
                    f"{item.where} names {item.text!r}, which is once: it runs before any host switches; "
                    f"move it to {environment.name}'s before, or take once away.",
                )


def _pair(one: Environment, other: Environment, nodes: Node, faults: Faults) -> None:
    place = nodes.get(other.name) or nodes
    if one.variables and one.variables == other.variables:
        faults.add(
            place.get("variables") or place,
            f"{other.name} and {one.name} share the locked file {one.variables}; a locked file opens for the hosts of "
            f"one environment, give {other.name} its own.",
        )
    overlap = one.hosts.items() <= other.hosts.items() or other.hosts.items() <= one.hosts.items()
    if overlap and one.run.port is not None and one.run.port == other.run.port:
        faults.add(
            place.get("hosts") or place,
            f"hosts of {other.name} are also hosts of {one.name}, and both use port {one.run.port}; "
            "give one another port or tell their hosts apart by a label.",
        )
