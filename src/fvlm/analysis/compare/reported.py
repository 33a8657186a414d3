"""Gaps that somebody reported, held against those of the losses: read off how, and of which group of runs?"""

import math

from fvlm.errors import UserError

NEAR = 0.1  # points of percent; rounded losses and parameter counts leave about as much open
READINGS = {
    "raw": "raw",
    "at_foveated": "at the foveated model's N",
    "at_baseline": "at the baseline's N",
    "mean": "mean of both directions",
}
Way = tuple[str, str, str]  # group, scale of N, reading


def reported_of(given: dict[str, str], option: str) -> dict[str, dict[str, float]]:
    """{"64:S-S": "2.44"} or, without groups, {"S-S": "2.44"} -> group -> pair -> percent; raises UserError."""
    found: dict[str, dict[str, float]] = {}
    for name, text in given.items():
        group, _, pair = name.rpartition(":")
        try:
            percent = float(text)
        except ValueError:
            percent = math.nan
        if not math.isfinite(percent):
            raise UserError(f"{option}: found {name}={text}; expected GROUP:PAIR=PERCENT")
        found.setdefault(group, {})[pair] = percent
    return found


def gaps_by_way(groups: list[dict], scale: str) -> dict[Way, dict[str, float]]:
    """Way -> pair -> percent, of groups as `fvlm gap` writes them; pairs of one size have their raw gap alone."""
    found: dict[Way, dict[str, float]] = {}
    for group in groups:
        for pair in group["pairs"]:
            numbers = {name: pair[name]["percent"] for name in ("raw", "at_foveated", "at_baseline")}
            if numbers["at_foveated"] is not None and numbers["at_baseline"] is not None:
                numbers["mean"] = (numbers["at_foveated"] + numbers["at_baseline"]) / 2
            for name, value in numbers.items():
                if value is not None:
                    found.setdefault((group["group"], "" if name == "raw" else scale, name), {})[pair["pair"]] = value
    return found


def held_against(reported: dict[str, dict[str, float]], ways: dict[Way, dict[str, float]]) -> list[dict]:
    """Of each group, what was reported, the nearest gaps of the group itself and of any, and a sentence.

    raises  UserError for a group or pair that is not there
    """
    return [_one(group, wanted, ways) for group, wanted in reported.items()]


def _one(group: str, wanted: dict[str, float], ways: dict[Way, dict[str, float]]) -> dict:
    def away(way: Way) -> float:
        return max(abs(ways[way][pair] - percent) for pair, percent in wanted.items())

    own = [way for way in ways if way[0] == group and wanted.keys() <= ways[way].keys()]
    if not own:
        known = dict.fromkeys(f"{way[0]}:{pair}".removeprefix(":") for way, pairs in ways.items() for pair in pairs)
        raise UserError(
            f"--reported: no {', '.join(wanted)}{f' in group {group}' * bool(group)}; found {', '.join(known)}"
        )
    nearest = min(own, key=away)
    best = min((way for way in ways if wanted.keys() <= ways[way].keys()), key=away)
    told = f"reported {f'of group {group} ' * bool(group)}{_listed(wanted)}"
    as_reported = away(nearest) <= NEAR
    if as_reported:
        text = f"{told}: as its losses give, {_how(nearest, wanted, ways)}"
    elif away(best) <= NEAR:
        text = (
            f"{told}: mislabelled; those are the gaps of group {best[0]}, {_how(best, wanted, ways)}; "
            f"the nearest of its own are {_how(nearest, wanted, ways)}"
        )
    else:
        text = f"{told}: no losses here give that; the nearest of its own are {_how(nearest, wanted, ways)}"
    return {
        "group": group,
        "percent": wanted,
        "as_reported": as_reported,
        "nearest_own": _written(nearest, wanted, ways),
        "nearest": _written(best, wanted, ways),
        "text": text,
    }


def _listed(percents: dict[str, float]) -> str:
    return ", ".join(f"{pair} {percent:+.2f} %" for pair, percent in percents.items())


def _how(way: Way, wanted: dict[str, float], ways: dict[Way, dict[str, float]]) -> str:
    scale = f", read off in {way[1]}" if way[1] else ""
    return f"{_listed({pair: ways[way][pair] for pair in wanted})} ({READINGS[way[2]]}{scale})"


def _written(way: Way, wanted: dict[str, float], ways: dict[Way, dict[str, float]]) -> dict:
    percent = {pair: ways[way][pair] for pair in wanted}
    return {"group": way[0], "scale": way[1] or None, "reading": READINGS[way[2]], "percent": percent}
