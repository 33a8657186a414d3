"""Whether names on the model hub can be looked up."""

import os
import urllib.error
import urllib.request
from functools import lru_cache
from pathlib import Path

SECONDS = 5  # to wait for an answer


def only_local(name: str) -> bool:
    """Return whether `name` is loaded from disk alone: a folder, or a hub name while the hub does not answer.

    The hub's library retries for 23 seconds without a network and for minutes behind a firewall that drops packets.
    A name that was downloaded before is found in its cache either way.
    """
    return Path(name).is_dir() or os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0") or not _hub_answers()


@lru_cache(maxsize=1)
def _hub_answers() -> bool:
    try:
        urllib.request.urlopen(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", timeout=SECONDS)
    except urllib.error.HTTPError:
        return True  # an answer
    except OSError:
        return False
    return True
