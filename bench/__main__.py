"""``python -m bench [NAME…] [--quick]``: prints one table for each benchmark."""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from bench.harness import BenchError

NAMES = {
    "hooks": "signed webhook → durable → answered, at 1,000/s",
    "push": "git push → the new version answers, beside pyinfra, ansible-core and Debian's webhook",
    "deployments": "100 deployments in a row under load: requests lost",
    "fleet": "100 agents switched; 5,000 agents told",
    "races": "logs read for data race reports: speed and memory",
    "sizes": "start of the command line, memory, size of an installation",
}


def main() -> int:
    listed = "\n".join(f"  {name:<12} {what}" for name, what in NAMES.items())
    parser = argparse.ArgumentParser(
        prog="make bench", epilog=f"benchmarks:\n{listed}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all when none is named")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions: a look, not a measurement")
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.names) - set(NAMES))
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    status = 0
    for name in chosen.names or NAMES:
        began = time.monotonic()
        try:
            importlib.import_module(f"bench.{name}").run(quick=chosen.quick)
            print(f"  {name} took {time.monotonic() - began:.0f} s", flush=True)
        except BenchError as error:
            print(f"\n{name} could not be measured: {error}", file=sys.stderr, flush=True)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
