"""``skerry agent run | install | status | doctor | service``."""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.clock import new_id
from skerry.disk import crash_point, nowhere
from skerry.errors import SkerryError, UsageError
from skerry.home import default_key, state_folder

if TYPE_CHECKING:
    from edge_agent.app import Paths
    from edge_agent.config import AgentConfig

# The agent's modules are imported where they run: the parent that `run` leaves behind must stay small.


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(prog="skerry agent", description="Run models on this device.")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run the agent until it is stopped, or its files have ended")
    run.add_argument("--config", type=Path, metavar="FILE", help="agent.toml; options below win over it")
    run.add_argument("--enrol", metavar="TOKEN", help="join the fleet of this claim token; its hub says what runs here")
    run.add_argument("--name", metavar="NAME", help="what the fleet calls this device (default: its host name)")
    run.add_argument("--model", type=Path, metavar="BUNDLE", help="install this bundle first")
    run.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="URL",
        help="rtsp://…, /dev/video0, a video file or a folder of images; repeatable",
    )
    run.add_argument("--loop", action="store_true", help="start files over at their end")
    run.add_argument("--every", action="store_true", help="process every frame of a file, as fast as it goes")
    run.add_argument("--jsonl", metavar="FILE", help="append every event to this file, each once")
    run.add_argument("--quiet", action="store_true", help="print no events")
    run.add_argument("--threads", type=int, metavar="N", help="threads for inference")
    run.add_argument("--port", type=int, metavar="N", help="the HTTP interface on 127.0.0.1:N (default: a free one)")
    run.add_argument("--no-parent", action="store_true", help="do not restart after a crash: something else does")
    install = commands.add_parser("install", help="hand a bundle in; the agent proves it and switches by itself")
    install.add_argument("bundle", type=Path, help="a .skb file or a bundle's folder")
    install.add_argument("--again", action="store_true", help="take back this device's earlier rejection of it")
    install.add_argument("--wait", type=float, metavar="S", help="wait until it is kept or refused, at most so long")
    status = commands.add_parser("status", help="what the agent runs and how it fares")
    status.add_argument("--json", action="store_true", help="everything, as JSON")
    run.add_argument("--log", choices=["text", "journal", "json"], help="form of log lines (default: what listens)")
    doctor = commands.add_parser("doctor", help="what this box can run, what is wrong, and how to mend it")
    doctor.add_argument("--config", type=Path, metavar="FILE", help="agent.toml, to look at what it names too")
    service = commands.add_parser("service", help="install the agent as a service of systemd, or remove it")
    service.add_argument("action", choices=["install", "uninstall"])
    service.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="the folder of an image; runs nothing"
    )
    for command in (run, install, status, doctor):
        command.add_argument(
            "--data", type=Path, metavar="DIR", help="the agent's data (default: ~/.local/state/skerry/agent)"
        )
    for command in (run, install):
        command.add_argument(
            "--trust",
            type=Path,
            action="append",
            default=[],
            metavar="PEM",
            help="public key whose bundles may run (default: this user's own)",
        )
    return p


def main(arguments: Sequence[str]) -> int:
    """Raises `SkerryError` for whatever the user can mend."""
    options = parser().parse_args(arguments)
    data = options.data or state_folder(os.environ) / "agent"
    commands: dict[str, Callable[[argparse.Namespace, Path], int]] = {
        "run": _run,
        "install": _install,
        "status": _status,
        "doctor": _doctor,
        "service": _service,
    }
    return commands[options.command](options, data)


# run


def _run(options: argparse.Namespace, data: Path) -> int:
    from edge_agent import config as configuration
    from edge_agent.parent import keep_alive

    overrides = _overrides(options, data)
    again = functools.partial(configuration.load, options.config, overrides) if options.config else None
    config = again() if again is not None else configuration.check(overrides, "options")
    agent = functools.partial(_agent, config, again, options)
    return agent(True) if options.no_parent else keep_alive(agent)


def _overrides(options: argparse.Namespace, data: Path) -> dict[str, Any]:
    """The configuration's keys that options set."""
    values: dict[str, Any] = {}
    if options.data or not options.config:
        values["data"] = str(data)
    if options.trust:
        values["trust"] = [str(path) for path in options.trust]
    if options.source:
        policy = {"policy": "every", "realtime": False} if options.every else {}
        values["sources"] = [{"url": url, "loop": options.loop, **policy} for url in options.source]
    events = {"jsonl": options.jsonl, "terminal": not options.quiet} if options.jsonl or options.quiet else None
    api = {"port": options.port} if options.port is not None else None
    given = {"events": events, "threads": options.threads, "api": api}
    return values | {key: value for key, value in given.items() if value is not None}


def trusted_keys(given: Sequence[Path], environ: Mapping[str, str]) -> list[Path]:
    """The keys that were named, or else this user's own.

    Raises:
        UsageError: none was named, and this user has none.
    """
    if given:
        return list(given)
    own = default_key(environ)
    own = own.with_name(own.name + ".pub")
    if not own.is_file():
        raise UsageError(
            f"no key is trusted: name the public key of who signs your bundles with --trust ({own} is not there)"
        )
    return [own]


def _agent(
    config: AgentConfig,
    again: Callable[[], AgentConfig] | None,
    options: argparse.Namespace,
    first: bool,  # noqa: FBT001 - the parent calls it
) -> int:
    """The agent's own process. A model from the command line is wished for once, not again after a crash."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy is small work here; its threads would fight inference's
    from edge_agent import app, handin
    from edge_agent.daemon import logs
    from skerry import signing
    from skerry.disk import Disk

    try:
        logs.start(logs.chosen(options.log, os.environ), new_id())
        model, name = options.model, options.name or socket.gethostname()
        paths = app.Paths(Path(config.data).absolute())
        config = _joined(config, paths, options.enrol, name, model)
        if model is not None and (first or not paths.desired.exists()):
            trusted = [signing.load_public_key(Path(path)) for path in config.trust]
            bundle = handin.hand_in(model, paths, Disk(), trusted, again=False)
            logging.getLogger(__name__).info("wish: %s", bundle)
        if again is not None:
            again = functools.partial(_again, again, config.trust)
        return app.run(config, crash_point(os.environ) if first else nowhere, _say, again)
    except SkerryError as exc:
        print(f"skerry agent run: {exc}", file=sys.stderr)
        return exc.exit_code


def _again(read: Callable[[], AgentConfig], trust: list[str]) -> AgentConfig:
    """The configuration read anew; without keys of its own, those that were found at the start."""
    import msgspec

    config = read()
    return config if config.trust else msgspec.structs.replace(config, trust=trust)


def _joined(config: AgentConfig, paths: Paths, token: str | None, name: str, model: Path | None) -> AgentConfig:
    """The configuration with the keys that are trusted, after joining the fleet of the token, if there is one."""
    import msgspec

    from edge_agent import identity
    from edge_agent.joining import join
    from skerry.claim import Claim
    from skerry.clock import SystemClock
    from skerry.disk import Disk

    if token is not None:
        me: identity.Identity | None = join(Claim.parse(token), name, paths.identity, Disk(), SystemClock())
    else:
        me = identity.load(paths.identity)
    if me is not None and model is not None:
        raise UsageError(f"this device takes its releases from the hub at {me.hub.url}; leave out --model")
    if config.trust:
        return config
    trust = [str(path) for path in (me.trust if me is not None else []) or trusted_keys([], os.environ)]
    return msgspec.structs.replace(config, trust=trust)


def _say(line: str) -> None:
    print(line, flush=True)


# install and status


def _install(options: argparse.Namespace, data: Path) -> int:
    from edge_agent import handin
    from edge_agent.app import Paths
    from skerry import signing
    from skerry.disk import Disk

    if (data / "identity" / "hub.json").exists():
        raise UsageError(
            "this device takes its releases from its hub: skerry fleet bundle push, skerry fleet rollout start"
        )
    trusted = [signing.load_public_key(path) for path in trusted_keys(options.trust, os.environ)]
    bundle = handin.hand_in(options.bundle, Paths(data.absolute()), Disk(), trusted, again=options.again)
    print(f"handed in: {bundle}")
    if options.wait:
        from edge_agent.follow import follow

        return follow(data, bundle.release, options.wait, _say)
    if not (data / "agent.json").exists():
        print("no agent runs on this data; it will prove and switch when it is started: skerry agent run")
    return 0


def _status(options: argparse.Namespace, data: Path) -> int:
    from edge_agent.follow import ask, describe

    status = ask(data)
    print(json.dumps(status, indent=2) if options.json else describe(status))
    return 0


# doctor and service


def _doctor(options: argparse.Namespace, data: Path) -> int:
    from edge_agent import config as configuration
    from edge_agent import doctor

    overrides = {"data": str(data)} if options.data or not options.config else {}
    wrong = False
    for finding in doctor.examine(
        lambda: configuration.load(options.config, overrides) if options.config else None, data
    ):
        print(f"{'✗' if finding.mend else '✓'} {finding.what:<11} {finding.found}")
        if finding.mend:
            wrong = True
            print(f"  {'':<11} to mend it: {finding.mend}")
    return int(wrong)


def _service(options: argparse.Namespace, _data: Path) -> int:
    from edge_agent.daemon import service
    from skerry.disk import Disk

    action = service.install if options.action == "install" else service.uninstall
    action(service.Service(options.root), Disk(), print)
    return 0
