"""Access to a Ray cluster of the current user from a process that did not start it."""

import logging

from ray._private.authentication import authentication_token_setup


def present_token() -> None:
    """Makes this process present the user's Ray token, if there is one. By default Ray clusters require it.

    Without this call only the process that started the cluster knows that a token is required.
    """
    quiet_about_token()
    authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def quiet_about_token() -> None:
    """Suppresses Ray's hint about the token, which it would print at every start."""
    logging.getLogger(authentication_token_setup.__name__).setLevel(logging.ERROR)
