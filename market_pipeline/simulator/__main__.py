"""`python -m market_pipeline.simulator`: serve a simulated vendor on loopback until asked to stop."""

from __future__ import annotations

import argparse
import json
import logging
import os
import threading
import time
from pathlib import Path

from market_pipeline.simulator.plans import PLANS
from market_pipeline.simulator.secret_files import read_or_make_secret
from market_pipeline.simulator.serving import HOST, SimulatorServer, bind
from market_pipeline.simulator.vendor import Vendor


def main() -> None:
    """Read the command line and serve."""
    asked = _arguments()
    parent = os.getppid()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    vendor = Vendor.make(
        read_or_make_secret(asked.api_key_file),
        plan=PLANS[asked.plan],
        seed=asked.seed,
        state_file=asked.state,
        gzip=asked.gzip,
    )
    listener = bind(asked.port)
    base_url = f"http://{HOST}:{listener.getsockname()[1]}"

    def ready() -> None:
        if asked.ready_file is not None:
            beside = asked.ready_file.with_name(asked.ready_file.name + ".new")
            beside.write_text(json.dumps({"base_url": base_url, "pid": os.getpid()}))
            beside.replace(asked.ready_file)
        print(f"vendor simulator ready on {base_url}", flush=True)

    server = SimulatorServer(vendor, read_or_make_secret(asked.control_token_file), ready)
    if asked.die_with_parent:
        threading.Thread(target=_end_with, args=(parent, server), daemon=True).start()
    server.run(sockets=[listener])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m market_pipeline.simulator", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 (the default) takes a free port")
    parser.add_argument("--api-key-file", type=Path, required=True, help="mode 0600; made when absent")
    parser.add_argument("--control-token-file", type=Path, required=True, help="mode 0600; made when absent")
    parser.add_argument("--ready-file", type=Path, help="gets base_url and pid as JSON once the server answers")
    parser.add_argument("--state", type=Path, help="keeps restated, withdrawn and removed minutes across restarts")
    parser.add_argument("--plan", choices=sorted(PLANS), default="unlimited")
    parser.add_argument("--seed", type=int, default=0, help="of the generated history")
    parser.add_argument("--gzip", action="store_true", help="compress for clients that accept it")
    parser.add_argument("--die-with-parent", action="store_true", help="end when the process that started this ends")
    return parser.parse_args()


def _end_with(parent: int, server: SimulatorServer) -> None:
    # Not PR_SET_PDEATHSIG: that fires when the parent's THREAD ends, and a pool's thread may well have started us.
    while os.getppid() == parent:
        time.sleep(0.2)
    server.should_exit = True
    time.sleep(5)
    os._exit(1)


if __name__ == "__main__":
    main()
