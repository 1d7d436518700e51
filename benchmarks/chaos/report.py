"""Keeps what the runs found, and makes of it the table of `docs/reliability.md`."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks/results/chaos.json"
VERDICTS = {True: "yes", False: "**no**", None: "not told"}


def load() -> dict[str, Any]:
    """Return the last run of each fault, by its name."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    return found


def keep(name: str, result: dict[str, Any]) -> None:
    """Put a run in the place of the last one of the same fault."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({**load(), name: result}, indent=2) + "\n")


def table() -> str:
    """Return the table of what was found."""
    lines = ["| fault | asked | seen | holds | command |", "|---|---|---|---|---|"]
    for result in load().values():
        first = True
        for finding in result["findings"]:
            what, command = (result["what"], f"`{result['command']}`") if first else ("", "")
            lines.append(
                f"| {what} | {finding['asked']} | {finding['seen']} | {VERDICTS[finding['holds']]} | {command} |"
            )
            first = False
    return "\n".join(lines) + "\n"
