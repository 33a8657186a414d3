"""Whether names on the model hub can be looked up."""

import http.client
import os
import ssl
import urllib.error
import urllib.request
from functools import lru_cache
from pathlib import Path

SECONDS = 5  # to wait for an answer
YES = ("1", "ON", "YES", "TRUE")  # as the hub's library reads its variables


def only_local(name: str) -> bool:
    """Return whether `name` is loaded from disk alone: a folder, or a hub name while the hub does not answer.

    The hub's library retries for 23 seconds without a network and for minutes behind a firewall that drops packets.
    A name that was downloaded before is found in its cache either way.
    """
    offline = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return Path(name).is_dir() or offline.upper() in YES or not _hub_answers()


@lru_cache(maxsize=1)
def _hub_answers() -> bool:
    try:
        urllib.request.urlopen(os.environ.get("HF_ENDPOINT") or "https://huggingface.co", timeout=SECONDS)
    except urllib.error.HTTPError:
        return True  # an answer
    except urllib.error.URLError as error:
        # Somebody answered. The hub's library has certificates of its own, which a small container may lack.
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, http.client.HTTPException):
        return False
    return True
