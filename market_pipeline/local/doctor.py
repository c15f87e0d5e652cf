"""Find out what is wrong with a stack and say what to do."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx
import psutil

from market_pipeline.errors import MarketPipelineError
from market_pipeline.local import disk, packages, ports
from market_pipeline.local.check import Check
from market_pipeline.local.components import COMPONENTS, Context, ProbeUnknown, select
from market_pipeline.local.doctor_road import examine_spool, examine_streams
from market_pipeline.local.layout import Home, is_private, user_name
from market_pipeline.local.passwords import ALL as PASSWORDS
from market_pipeline.local.stack import Stack
from market_pipeline.local.state import StackState
from market_pipeline.settings import Settings, is_loopback, load_settings

MIN_MEMORY_MB = 2048
SLOW_FSYNC_MS = 10.0
CLOCK_SKEW_S = 5.0
_OLDEST_SANE = 1_735_689_600  # 2025-01-01: a clock before this was never set
_VENDOR_TIMEOUT_S = 5.0


def examine(home: Home, *, min_free_mb: int = disk.DEFAULT_MIN_FREE_MB) -> Iterator[Check]:
    """Yield the findings one by one, whether or not the stack runs; change nothing but a probe's own rows."""
    yield _python()
    yield _packages()
    yield from _machine(home, min_free_mb)
    if not home.root.exists():
        yield Check("stack", "wrong", f"there is none in {home.root}", "start it: market-pipeline up")
        return
    yield from _files(home)
    try:
        settings = load_settings(home.root)
        stack = Stack(home.root)
        state = stack.state()
    except MarketPipelineError as error:
        yield Check("settings", "wrong", str(error), "mend it, or run `market-pipeline up` again")
        return
    if state is None:
        yield Check("stack", "wrong", "it is not running", "start it: market-pipeline up")
        yield from _kept_ports(home)
    else:
        yield Check("stack", "good", f"supervisor {state.pid} is {state.phase}")
        yield from _components(home, settings, state)
        if (nats := state.component("nats")) is not None and nats.state == "ready":
            yield from examine_streams(settings)
    yield from examine_spool(settings)
    yield from _vendor(settings)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info < (3, 14):
        return Check("python", "good", version)
    return Check("python", "wrong", version, "use Python 3.11, 3.12 or 3.13")


def _packages() -> Check:
    wanted = {package for kind in COMPONENTS.values() for package in kind.packages}
    absent = packages.missing(sorted(wanted))
    if absent:
        return Check("packages", "wrong", f"missing: {', '.join(absent)}", packages.INSTALL_LOCAL)
    return Check("packages", "good", "every server is installed")


def _machine(home: Home, min_free_mb: int) -> Iterator[Check]:
    folder = next(parent for parent in (home.root, *home.root.parents) if parent.exists())
    free = disk.free_mb(folder)
    enough = free >= min_free_mb
    yield Check(
        "disk",
        "good" if enough else "wrong",
        f"{free:,} MB free",
        "" if enough else f"free at least {min_free_mb:,} MB",
    )
    if home.run.exists() and os.access(home.run, os.W_OK):
        cost = disk.fsync_ms(home.run)
        slow = cost > SLOW_FSYNC_MS
        yield Check(
            "fsync",
            "warning" if slow else "good",
            f"{cost:.2f} ms for a durable write of 4 KB",
            "every acknowledged message waits for one: put the folder on a faster disk (--home)" if slow else "",
        )
    memory = psutil.virtual_memory().available // disk.MIB
    tight = memory < MIN_MEMORY_MB
    yield Check(
        "memory",
        "warning" if tight else "good",
        f"{memory:,} MB available",
        f"the whole stack likes {MIN_MEMORY_MB:,} MB: end other programs, or use `up --no-dagster`" if tight else "",
    )
    if time.time() < _OLDEST_SANE:
        yield Check("clock", "wrong", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()), "set the system's clock")
    else:
        yield Check("clock", "good", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))


def _files(home: Home) -> Iterator[Check]:
    owner = home.root.stat().st_uid
    if owner != os.geteuid():
        yield Check(
            "folder", "wrong", f"{home.root} belongs to {user_name(owner)}", "run as its owner, or use another --home"
        )
        return
    private = [home.secrets, home.run, home.logs, home.settings_file, *(home.secrets / name for name in PASSWORDS)]
    existing = [path for path in private if path.exists()]
    open_ones = [path for path in existing if not is_private(path)]
    if open_ones:
        names = " ".join(str(path) for path in open_ones)
        yield Check("permissions", "wrong", f"others can read {names}", f"chmod go= {names}")
    else:
        yield Check("permissions", "good", f"{len(existing)} private files and folders")


def _kept_ports(home: Home) -> Iterator[Check]:
    for name, port in ports.ensure_ports(home, ()).items():
        if ports.is_taken(port):
            yield Check(
                f"port of {name}",
                "wrong",
                f"{port} is taken by {ports.holder(port)}",
                "market-pipeline up --repick-ports",
            )


def _components(home: Home, settings: Settings, state: StackState) -> Iterator[Check]:
    secrets = {name: (home.secrets / name).read_text().strip() for name in PASSWORDS}
    project = Path(state.project_dir) if state.project_dir else None
    context = Context(home, ports.ensure_ports(home, ()), secrets, settings, state.module, project)
    for told in state.components:
        component = COMPONENTS[told.name](context)
        log = home.log(told.name)
        if told.state in ("failed", "restarting", "waiting"):
            yield Check(told.name, "wrong", told.detail or told.state, f"read {log}; then market-pipeline down and up")
            continue
        began = time.perf_counter()
        try:
            component.probe(deep=True)
        except ProbeUnknown as error:
            yield Check(told.name, "warning", str(error), "mend that first")
        except Exception as error:  # each client library has errors of its own
            yield Check(told.name, "wrong", " ".join(str(error).split())[:300], f"read {log}")
        else:
            cost = (time.perf_counter() - began) * 1000
            restarts = f", {told.restarts} restarts (last: {told.last_exit})" if told.restarts else ""
            yield Check(
                told.name,
                "warning" if told.restarts else "good",
                f"answers in {cost:.0f} ms{restarts}",
                f"why it ended is in {log}" if told.restarts else "",
            )
    absent = [name for name in select() if state.component(name) is None]
    if absent:
        yield Check(
            "not started", "warning", ", ".join(absent), "market-pipeline down, then up without --only/--no-dagster"
        )


def _vendor(settings: Settings) -> Iterator[Check]:
    base, key = settings.vendor.base_url, settings.vendor.api_key.get_secret_value()
    if not key:
        yield Check(
            "vendor", "wrong", "there is no key", "set POLYGON_API_KEY, or `market-pipeline up` for the simulator"
        )
        return
    try:
        answer = httpx.get(
            f"{base}/v1/marketstatus/now",
            headers={"Authorization": f"Bearer {key}"},
            timeout=_VENDOR_TIMEOUT_S,
            trust_env=not is_loopback(base),
        )
    except httpx.HTTPError as error:
        yield Check(
            "vendor",
            "wrong",
            f"{base} is not reachable ({type(error).__name__})",
            "check the network and vendor.base_url",
        )
        return
    if answer.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        yield Check(
            "vendor", "wrong", f"{base} refuses the key ({answer.status_code})", "check POLYGON_API_KEY and the plan"
        )
    elif answer.status_code != httpx.codes.OK:
        yield Check("vendor", "warning", f"{base} answers {answer.status_code}", "try again later")
    else:
        yield Check("vendor", "good", f"{base} accepts the key")
    yield from _skew(answer)


def _skew(answer: httpx.Response) -> Iterator[Check]:
    try:
        said = parsedate_to_datetime(answer.headers["date"]).timestamp()
    except (KeyError, ValueError):
        return
    skew = time.time() - said
    if abs(skew) > CLOCK_SKEW_S:
        yield Check(
            "clock and vendor", "wrong", f"{skew:+.0f} s apart", "set the system's clock: closed bars depend on it"
        )
