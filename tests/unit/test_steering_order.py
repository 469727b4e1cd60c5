"""The order of a group is the kernel's, and nobody but the probe ever reaches a closed socket."""

import contextlib
import os
import select
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waybill.agent import steering


def connect(address, port, source=0, options=b""):
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    made.settimeout(0.2)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    if options:
        made.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, options)
    try:
        if source:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((address, source))
        made.connect((address, port))
    except BaseException:
        made.close()
        raise
    return made


def accept_all(listener):
    count = 0
    while select.select([listener], [], [], 0)[0]:
        listener.accept()[0].close()
        count += 1
    return count


@pytest.mark.parametrize(("bind", "address", "options"), [
    ("0.0.0.0", "127.0.0.1", b""), ("0.0.0.0", "127.0.0.1", b"\1\1\1\1"), ("127.0.0.1", "127.0.0.1", b""),
    ("0.0.0.0", "127.0.0.2", b""), ("::", "127.0.0.1", b""), ("::", "::1", b""),
])  # fmt: skip
def test_users_go_to_the_current_socket_and_the_probe_to_the_new_one(bind, address, options):
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(steering.probe_port())
        source = held.getsockname()[1]
        try:
            old = stack.enter_context(steering.listener(bind, 0))
        except OSError as error:
            pytest.skip(f"cannot listen on {bind}: {error}")
        port = old.getsockname()[1]
        steering.steer(old, source, 0, 0)
        old.listen(64)
        new = stack.enter_context(steering.listener(bind, port))
        steering.close_to_users(new, source)
        steering.steer(old, source, 1, 0)
        new.listen(64)
        for _ in range(8):
            connect(address, port, options=options).close()
        probe = stack.enter_context(connect(address, port, source, options))
        assert (steering.backlog(old), steering.backlog(new)) == (8, 1)
        peer = steering.connection((address, port), (address, source))
        assert peer and peer.state == steering.TCP_ESTABLISHED and peer.inode == 0
        accepted = stack.enter_context(new.accept()[0])
        peer = steering.connection((address, port), (address, source))
        assert peer and peer.inode == steering.inode(accepted)
        probe.close()
        steering.open_to_users(new)
        steering.steer(new, source, 1, 1)
        accept_all(old)
        for _ in range(8):
            connect(address, port, options=options).close()
        assert (accept_all(old), accept_all(new)) == (0, 8)


def test_a_closed_socket_drops_users_even_where_it_is_alone():
    with steering.probe_port() as held, steering.listener("127.0.0.1", 0) as only:
        source, port = held.getsockname()[1], only.getsockname()[1]
        steering.close_to_users(only, source)
        only.listen()
        with pytest.raises(TimeoutError):
            connect("127.0.0.1", port)
        connect("127.0.0.1", port, source).close()
        steering.open_to_users(only)
        steering.open_to_users(only)  # twice is no fault
        connect("127.0.0.1", port).close()


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), max_size=12))
def test_the_model_of_the_order_is_the_kernels(moves):
    """A member is added (0) or one is closed (n: the n-th modulo the length); each index is then looked up for real."""
    with contextlib.ExitStack() as stack:
        held = stack.enter_context(steering.probe_port())
        source = held.getsockname()[1]
        order, sockets, number, port = steering.Order(), {}, 0, 0
        for move in [0, 0, *moves]:
            if move == 0 or len(order) < 2:
                number += 1
                made = stack.enter_context(steering.listener("127.0.0.1", port))
                port = made.getsockname()[1]
                made.listen(16)
                sockets[number] = made
                assert order.join(number) == len(order) - 1
            else:
                gone = order[move % len(order)]
                sockets.pop(gone).close()
                order.leave(gone)
            for index, member in enumerate(order):
                steering.steer(sockets[order[0]], source, index, index)
                connect("127.0.0.1", port).close()
                assert [accept_all(sockets[m]) for m in order] == [int(m == member) for m in order]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True), st.integers(0, 5), st.integers(0, 5))
def test_a_socket_that_may_leave_never_moves_users(members, leaving, serving):
    order = steering.Order(members)
    gone, current = members[leaving % len(members)], members[serving % len(members)]
    if order.may_leave(gone, current):
        at = order.index(current)
        order.leave(gone)
        assert order[at : at + 1] == [current] or list(order) == [current]  # alone, any index leads to it


def test_the_probe_port_is_nobody_elses():
    with steering.probe_port() as held:
        port = held.getsockname()[1]
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))


def test_listeners_of_a_port_are_found_with_their_address():
    with socket.socket() as made:
        made.bind(("127.0.0.3", 0))
        made.listen()
        found = steering.listeners(made.getsockname()[1])
        assert [(peer.inode, peer.address, peer.uid) for peer in found] == [
            (steering.inode(made), "127.0.0.3", os.geteuid())
        ]
