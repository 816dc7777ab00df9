"""Errors that a user can act on."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input: says in one line what is wrong, where, and what would be right.

    The command line prints the message alone and exits with code 2; in Python it is an ordinary `ValueError`.
    """
