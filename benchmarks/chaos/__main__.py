"""Runs faults, prints what was asked and seen, and ends with 1 when something asked does not hold.

    python -m benchmarks.chaos                      what there is
    python -m benchmarks.chaos hot-swaps kills      some of them
    python -m benchmarks.chaos all --share 0.05     all, with a twentieth of the amounts
    python -m benchmarks.chaos soak --seconds 3600  an hour

Each run is kept in `benchmarks/results/chaos.json`, from which the table of `docs/reliability.md` is made.
"""

import argparse
import shutil
import sys
import traceback
from dataclasses import asdict
from datetime import UTC, datetime

from benchmarks import machine, prepare
from benchmarks.chaos import (
    balance,
    cancelled,
    corrupt,
    disk_full,
    hot_swaps,
    kills,
    overload,
    redis_away,
    report,
    sigterm,
    soak,
)
from benchmarks.chaos.fault import Fault, Finding, Ground

ALL = (
    hot_swaps.FAULT,
    kills.FAULT,
    *redis_away.FAULTS,
    cancelled.FAULT,
    overload.FAULT,
    sigterm.FAULT,
    balance.FAULT,
    disk_full.FAULT,
    corrupt.FAULT,
    soak.FAULT,
)
FAULTS: dict[str, Fault] = {fault.name: fault for fault in ALL}
VERDICTS = {True: "holds", False: "MISSED", None: "not told by so short a run"}


def main() -> int:
    """Run what was named; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*FAULTS, "all", []], metavar="NAME", help="of a fault, or `all`")
    parser.add_argument("--share", type=float, default=1.0, help="of the amounts, such as 0.05 of 200 kills")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase under load")
    arguments = parser.parse_args()
    if not arguments.names:
        for fault in FAULTS.values():
            sys.stdout.write(f"{fault.name:18} {fault.what}\n")
        return 0
    names = list(FAULTS) if "all" in arguments.names else arguments.names
    missed = [name for name in names if not run(FAULTS[name], share=arguments.share, seconds=arguments.seconds)]
    sys.stdout.write(f"missed: {', '.join(missed)}\n" if missed else "all hold\n")
    return 1 if missed else 0


def run(fault: Fault, *, share: float, seconds: float) -> bool:
    """Run one fault and keep what was found; return whether all that could be told holds."""
    folder = prepare.FOLDER / "run" / fault.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    sys.stdout.write(f"{fault.name}: {fault.what}\n")
    findings: list[Finding] = []
    started = datetime.now(UTC)
    try:
        for finding in fault.run(Ground(folder, share=share, seconds=seconds)):
            findings.append(finding)
            sys.stdout.write(f"  {VERDICTS[finding.holds]}: {finding.asked}: {finding.seen}\n")
            sys.stdout.flush()
    except Exception as error:  # noqa: BLE001 - the other faults are still to be run
        traceback.print_exc()
        findings.append(Finding("the run comes to its end", f"{type(error).__name__}: {error}", holds=False))
    report.keep(
        fault.name,
        {
            "what": fault.what,
            "command": f"python -m benchmarks.chaos {fault.name} --share {share:g} --seconds {seconds:g}",
            "started_at": started.isoformat(timespec="seconds"),
            "machine": machine.describe(),
            "findings": [asdict(finding) for finding in findings],
        },
    )
    return all(finding.holds is not False for finding in findings)


if __name__ == "__main__":
    sys.exit(main())
