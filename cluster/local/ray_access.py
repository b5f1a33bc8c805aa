"""Access to a Ray cluster of this machine's user from a process that did not start it."""

import logging

from ray._private.authentication import authentication_token_setup


def present_token() -> None:
    """Makes this process show the user's Ray token, where there is one. Ray asks for it since its clusters are closed by default.

    Without this only the process that started the cluster knows that a token is wanted.
    """
    quiet_about_token()
    authentication_token_setup.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def quiet_about_token() -> None:
    """Leaves out Ray's hint, at every start, that its clusters are closed by default."""
    logging.getLogger(authentication_token_setup.__name__).setLevel(logging.ERROR)
