"""The sub-command `simulate` of workspace-brokerd: traces and a configuration in, report, log and picture out.

Exit codes: 0 done, 1 some entry never began, or a file could not be written, 2 the configuration, a trace or the
command line is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from broker.config import ConfigError, Settings, load
from broker.policy_registry import Kind, names
from broker.replay.driver import Options, ReplayError, replay
from broker.replay.log import lines_of
from broker.replay.picture import picture
from broker.replay.report import report
from broker.replay.traces import TraceError, read

DESCRIPTION = """Replays workload traces on the pools of a configuration, as fast as it can be computed: the very same
broker, on a clock that jumps. TRACE is a .swf (Standard Workload Format) or a .lwf file; several are replayed together.
Configure simulated pools: what the broker is told to start is really started."""


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="workspace-brokerd simulate", description=DESCRIPTION)
    parser.add_argument("traces", nargs="+", type=Path, metavar="TRACE")
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="the configuration, TOML")
    parser.add_argument("--report", type=Path, metavar="FILE", help="the figures, JSON; standard output otherwise")
    parser.add_argument("--log", type=Path, metavar="FILE", help="what happened, one JSON object a line")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="the schedule as a picture, SVG")
    parser.add_argument("--preemptible", action="store_true", help="jobs may be suspended to make room")
    parser.add_argument(
        "--nodes-per-host", type=int, default=1, metavar="N", help="nodes of an SWF trace that share a host (1)"
    )
    parser.add_argument("--backfill", choices=names(Kind.BACKFILL), help="in every pool, instead of what is configured")
    parser.add_argument("--log-level", default="error", choices=["debug", "info", "warning", "error"])
    return parser


def main(arguments: Sequence[str]) -> int:
    """Runs the sub-command; returns the exit code."""
    parser = _arguments()
    options = parser.parse_args(arguments)
    if options.nodes_per_host < 1:
        parser.error(f"--nodes-per-host is {options.nodes_per_host}: 1 at least")
    logging.basicConfig(level=options.log_level.upper(), format="%(levelname)s %(name)s %(message)s", stream=sys.stderr)
    try:
        settings = load(options.config)
        traces = read(options.traces)
        if options.backfill:
            settings = _with_backfill(settings, options.backfill)
        wanted = Options(preemptible=options.preemptible, nodes_per_host=options.nodes_per_host)
        # Not uvloop: the clock has to see when the loop has run dry.
        header, lines = asyncio.run(replay(settings, traces, wanted))
    except (ConfigError, TraceError, ReplayError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    for trace in traces:
        if trace.left_out:
            sys.stderr.write(f"{trace.file}: {len(trace.left_out)} lines left out, such as {trace.left_out[0]}\n")
    figures = report(header, lines)
    text = msgspec.json.format(msgspec.json.encode(figures)).decode() + "\n"
    try:
        if options.log is not None:
            options.log.write_bytes(lines_of(header, lines))
        if options.picture is not None:
            options.picture.write_text(picture(header, lines, figures), encoding="utf-8")
        if options.report is not None:
            options.report.write_text(text, encoding="utf-8")
        else:
            sys.stdout.write(text)
    except OSError as error:
        sys.stderr.write(f"workspace-brokerd simulate: {error}\n")
        return 1
    if figures.jobs.never_started:
        sys.stderr.write(f"{figures.jobs.never_started} jobs never began\n")
        return 1
    return 0


def _with_backfill(settings: Settings, backfill: str) -> Settings:
    return replace(settings, pools={name: replace(pool, backfill=backfill) for name, pool in settings.pools.items()})
