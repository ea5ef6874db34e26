"""Tokens on a node: verified, never revoked, and every refusal counted by its reason."""

import pytest

from eventbus.bus import EventBus
from eventbus.config import Settings
from eventbus.errors import ConnectionFailed
from eventbus_edge.access.authenticator import Authenticator
from eventbus_edge.access.revoker import Revoker
from eventbus_edge.access.tickets import Tickets
from eventbus_edge.access.token_keys import TokenPolicy
from eventbus_edge.access.tokens import (
    TokenRejected,
    TokenVerifier,
)
from tests.edge.conftest import SECRET


async def end_nothing(revocation):
    pass


@pytest.fixture
async def bus():
    async with EventBus(Settings(driver="memory")) as opened:
        yield opened


@pytest.fixture
async def revoker(bus):
    made = Revoker(bus.driver, bus.subjects, end_nothing, lifetime_s=60.0)
    await made.start()
    yield made
    await made.aclose()


@pytest.fixture
def calls():
    return []


@pytest.fixture
def make(revoker, calls):
    def authenticator(*, has_keys=True):
        return Authenticator(
            TokenVerifier(TokenPolicy(secret=SECRET)) if has_keys else None,
            Tickets(SECRET),
            revoker,
            on_rejected=calls.append,
            before_verify=lambda: calls.append("before"),
        )

    return authenticator


async def refused(authenticator, token, **options):
    with pytest.raises(TokenRejected) as caught:
        await authenticator.verify(token, **options)
    return caught.value.code


async def test_token_and_ticket_give_their_claims_after_a_check_for_pauses(make, token, calls):
    authenticator = make()
    claims = await authenticator.verify(token("7"))
    assert claims.user_id == "7"
    ticket = authenticator.tickets.issue(claims)
    assert (await authenticator.verify(ticket)).user_id == "7"
    assert calls == ["before", "before"]


async def test_each_refusal_is_reported_with_its_reason(make, token, calls):
    assert await refused(make(), "nonsense") == "unauthorized"
    assert await refused(make(has_keys=False), token("7")) == "unauthorized"
    assert calls == ["before", "malformed", "before", "no_key"]


async def test_tickets_are_accepted_without_any_key_for_tokens(make):
    authenticator = make(has_keys=False)
    assert not authenticator.has_keys
    assert (await authenticator.verify(authenticator.tickets.issue(None))).is_admin


@pytest.mark.parametrize("is_new", [True, False])
async def test_revoked_token_is_refused_to_new_and_to_present_clients(
    make, revoker, token, calls, is_new
):
    await revoker.revoke(user_id="7")
    assert await refused(make(), token("7"), is_new=is_new) == "unauthorized"
    assert calls == ["before", "revoked"]
    assert await revoker.lift(user_id="7")
    assert not await revoker.lift(user_id="7")
    assert (await make().verify(token("7"), is_new=is_new)).user_id == "7"


async def test_only_present_clients_are_accepted_while_revocations_cannot_be_read(
    make, revoker, token, calls, caplog, monkeypatch
):
    async def fail():
        raise ConnectionFailed("the bus does not answer", driver="memory")

    monkeypatch.setattr(revoker, "resync", fail)
    revoker.invalidate()
    assert await refused(make(), token("7")) == "unavailable"
    assert calls == ["before", "revocations_unavailable"]
    assert "a token cannot be accepted before revocations are read" in caplog.text
    assert (await make().verify(token("7"), is_new=False)).user_id == "7"
