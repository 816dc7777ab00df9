"""Whether the Hugging Face Hub can be reached, found out in seconds: its own client tries for half a minute or more."""

from __future__ import annotations

from pathlib import Path

from pyro_ltm.errors import UserError, one_line

SECONDS = 5.0
"""To wait for an answer."""


def check_hub(spec: str, name: str) -> None:
    """Raises UserError, beginning with `spec`, when the data set `name` is on the Hub and that does not answer.

    A local folder needs none; nor does who works offline (HF_HUB_OFFLINE) from what was downloaded before.
    """
    from huggingface_hub import constants, get_session  # here, because it takes a while

    if Path(name).is_dir() or constants.is_offline_mode():
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)  # whatever it answers, it is there
    except Exception as error:  # the client's classes changed with its releases
        raise UserError(
            f"{spec}: {constants.ENDPOINT} cannot be reached: {one_line(error)}; check the network, or set "
            "HF_HUB_OFFLINE=1 to read what was downloaded before"
        ) from None
