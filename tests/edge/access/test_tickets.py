import pytest

from eventbus_edge.access.tickets import (
    LIFE_S,
    Tickets,
    is_ticket,
)
from eventbus_edge.access.tokens import (
    Claims,
    TokenRejected,
)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def test_ticket_of_the_key_is_an_administrators_for_every_channel():
    ticket = Tickets("a key").issue(None)
    claims = Tickets("a key").read(ticket)
    assert is_ticket(ticket)
    assert claims.is_admin
    assert claims.is_granted("any.channel")


def test_ticket_of_a_token_names_its_user_and_ends_no_later():
    clock = Clock()
    tickets = Tickets("a key", clock)
    bearer = Claims(sub="7", jti="a1", exp=clock.now + 10, roles=frozenset({"admin"}))
    claims = tickets.read(tickets.issue(bearer))
    assert (claims.sub, claims.jti, claims.exp) == ("7", "a1", clock.now + 10)


def test_ticket_expires():
    clock = Clock()
    tickets = Tickets("a key", clock)
    ticket = tickets.issue(None)
    clock.now += LIFE_S - 1
    tickets.read(ticket)
    clock.now += 1
    with pytest.raises(TokenRejected) as caught:
        tickets.read(ticket)
    assert caught.value.code == "token_expired"


def test_ticket_of_another_node_is_good_while_their_clocks_differ_by_the_leeway_at_most():
    here, ahead = Clock(), Clock()
    ahead.now += 5
    there = Tickets("a key", ahead, leeway_s=5)
    ticket = there.issue(None)
    assert Tickets("a key", here, leeway_s=5).read(ticket).iat == ahead.now
    here.now = ahead.now + LIFE_S + 4.9
    Tickets("a key", here, leeway_s=5).read(ticket)
    here.now = ahead.now - 5.1
    with pytest.raises(TokenRejected) as caught:
        Tickets("a key", here, leeway_s=5).read(ticket)
    assert caught.value.reason == "not_yet_valid"


@pytest.mark.parametrize("secret", ["another key", ""])
def test_ticket_of_another_secret_is_refused(secret):
    with pytest.raises(TokenRejected) as caught:
        Tickets(secret).read(Tickets("a key").issue(None))
    assert caught.value.reason == "signature"


def test_processes_without_a_secret_do_not_accept_each_others():
    with pytest.raises(TokenRejected):
        Tickets("").read(Tickets("").issue(None))


@pytest.mark.parametrize("rest", ["", ".", "e30", "e30.\u00fc", "\ud800.e30", "e30.e"])
def test_invalid_tickets_are_refused(rest):
    with pytest.raises(TokenRejected):
        Tickets("a key").read(f"ebticket-{rest}")


def test_changed_ticket_is_refused():
    tickets = Tickets("a key")
    payload, signature = tickets.issue(None).split(".")
    changed = payload[:-2] + ("AA" if payload[-2:] != "AA" else "BB")
    with pytest.raises(TokenRejected):
        tickets.read(f"{changed}.{signature}")
