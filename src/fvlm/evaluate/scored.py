"""What an evaluation has scored so far, for one that was killed: a file beside its table until that is there."""

import math
from pathlib import Path

from fvlm.train.state import MetricsLog


class Scored:
    """The rows of the batches that are scored already, in the order in which they are scored.

    path        JSON lines: the identity, and then the rows of batch after batch
    identity    of all that they depend on; what another one has left is thrown away
    """

    def __init__(self, path: Path, identity: str):
        self.log = MetricsLog(path, math.inf)
        begin, *batches = self.log.records() or [None]
        if begin != {"step": 0, "identity": identity}:
            batches = []
            self.log = MetricsLog(path, None)
            self.log.append({"step": 0, "identity": identity})
        self.batches = [batch["rows"] for batch in batches]

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def rows(self) -> list[dict]:
        return [row for batch in self.batches for row in batch]

    def append(self, rows: list[dict]) -> None:
        """raises   UserError if they cannot be written"""
        self.batches.append(rows)
        self.log.append({"step": len(self), "rows": rows})

    def forget(self) -> None:
        self.log.path.unlink(missing_ok=True)
