"""The view from which the browser client gets its token."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from eventbus.integrations.django.conf import token_issuer
from eventbus.tokens import TokenUser

__all__ = ["signed_in_user", "token_view"]

User = TokenUser | str | None


def signed_in_user(request: HttpRequest) -> User:
    """The user who is signed in with django.contrib.auth, or None."""
    user = getattr(request, "user", None)
    if user is None or not user.is_authenticated:
        return None
    return TokenUser(user_id=str(user.pk), name=user.get_username())


def token_view(
    get_user: Callable[[HttpRequest], User] = signed_in_user,
) -> Callable[[HttpRequest], HttpResponse]:
    """A view that answers with a signed token as plain text, or with 401 without a user.

    `path("token", token_view())`. `get_user` returns a user id, or a TokenUser with name, roles,
    permissions, channels and info, or None for a visitor without a session.
    """

    @require_GET
    @never_cache
    def token(request: HttpRequest) -> HttpResponse:
        user = get_user(request)
        text, status = ("sign in first", 401) if user is None else (token_issuer().issue(user), 200)
        return HttpResponse(text, status=status, content_type="text/plain; charset=utf-8")

    view: Callable[[HttpRequest], HttpResponse] = token
    return view
