"""Channel rules in words: who may join a channel, and who may whisper on it. Pure."""

from edge.rules import ChannelRules, Who

__all__ = ["who_may_join", "who_may_whisper"]

_GRANTED = "a token whose channels grant it"


def who_may_join(rules: ChannelRules, channel: str) -> list[str]:
    """Those who may join, one phrase for each condition; there is always one."""
    rule, authorizer = rules.explain(channel)
    if rule.join is not None:
        told = _phrases(rule.join)
    elif authorizer is not None:
        check = authorizer.check
        name = getattr(check, "__qualname__", None) or type(check).__qualname__
        told = [f"whom the authorizer {name} of {authorizer.pattern.text} lets in"]
    else:
        told = []
    is_open = rule.join is not None and rule.join.anyone
    return told if is_open else [*told, _GRANTED]


def who_may_whisper(rules: ChannelRules, channel: str) -> list[str]:
    """Those who may send client events, once they have joined; nobody when it is empty."""
    return _phrases(rules.explain(channel)[0].whisper)


def _phrases(who: Who) -> list[str]:
    told = []
    if who.anyone:
        told.append("anyone")
    if who.authenticated:
        told.append("any authenticated user")
    if who.user:
        told.append(f"the user whose id is the channel's {{{who.user}}}")
    told += [f"the role {role}" for role in sorted(who.roles)]
    told += [f"the permission {permission}" for permission in sorted(who.permissions)]
    return told
