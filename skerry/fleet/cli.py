"""``skerry fleet token | devices | device | bundle | rollout | events | operator``: each is a call of the hub's API."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skerry.errors import UsageError
from skerry.home import default_key

if TYPE_CHECKING:
    from skerry.fleet import documents as doc
    from skerry.fleet.client import Client

_ACTIONS = ("pause", "resume", "abort", "take-back")
_ENDED = ("done", "taken back", "aborted")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(prog="skerry fleet", description="Operate a fleet through its hub.")
    p.add_argument("--hub", type=Path, metavar="FILE", help="the hub's operator.json (or $SKERRY_HUB)")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _token_parser(commands.add_parser("token", help="claim tokens, by which devices join"))
    listed = commands.add_parser("devices", help="every device: what it runs, what it should run, how it fares")
    listed.add_argument("--group", metavar="NAME", help="of this group alone")
    listed.add_argument("--json", action="store_true", help="everything, as JSON")
    _device_parser(commands.add_parser("device", help="one device"))
    _bundle_parser(commands.add_parser("bundle", help="the releases that the hub knows"))
    _rollout_parser(commands.add_parser("rollout", help="how a release reaches the fleet"))
    events = commands.add_parser("events", help="events that devices sent, one JSON object a line")
    events.add_argument("--device", metavar="DEVICE", help="of this device alone")
    events.add_argument("--after", type=int, default=0, metavar="ID", help="those behind this one")
    operator = commands.add_parser("operator", help="who may operate the fleet")
    verbs = operator.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("list", help="who has an API token")
    create = verbs.add_parser("create", help="make an API token, as a file that --hub takes")
    remove = verbs.add_parser("remove", help="take an API token's right away")
    for verb in (create, remove):
        verb.add_argument("name", help="the operator's name")
    create.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="write it there")
    return p


def _token_parser(token: argparse.ArgumentParser) -> None:
    verbs = token.add_subparsers(dest="verb", required=True, metavar="VERB")
    create = verbs.add_parser("create", help="make a claim token; a device joins with `skerry agent run --enrol`")
    create.add_argument("--group", default="default", metavar="NAME", help="the group that its devices join")
    create.add_argument("--uses", type=int, default=1, metavar="N", help="how many devices may use it (default: 1)")
    create.add_argument("--hours", type=float, default=24.0, metavar="H", help="how long it is valid (default: 24)")
    create.add_argument(
        "--trust",
        type=Path,
        action="append",
        default=[],
        metavar="PEM",
        help="public key whose bundles its devices run (default: this user's own)",
    )


def _device_parser(device: argparse.ArgumentParser) -> None:
    verbs = device.add_subparsers(dest="verb", required=True, metavar="VERB")
    show = verbs.add_parser("show", help="everything that the hub knows of it, as JSON")
    revoke = verbs.add_parser("revoke", help="it gets nothing any more, and is not heard")
    clear = verbs.add_parser("clear", help="take back its rejection of a release, so that it may try again")
    for verb in (show, revoke, clear):
        verb.add_argument("device", help="id, the beginning of it, or name")
    clear.add_argument("release", help="NAME@VERSION or id")


def _bundle_parser(bundle: argparse.ArgumentParser) -> None:
    verbs = bundle.add_subparsers(dest="verb", required=True, metavar="VERB")
    push = verbs.add_parser("push", help="send a bundle to the hub; only what it does not have travels")
    push.add_argument("bundle", type=Path, help="a .skb file or a bundle's folder")
    verbs.add_parser("list", help="every release, newest first")


def _rollout_parser(rollout: argparse.ArgumentParser) -> None:
    verbs = rollout.add_subparsers(dest="verb", required=True, metavar="VERB")
    start = verbs.add_parser("start", help="roll a release out: canary first, then wave by wave")
    start.add_argument("release", help="NAME@VERSION or id")
    start.add_argument("--group", metavar="NAME", help="to this group (default: to every device)")
    start.add_argument("--canary", default="1", metavar="SIZE", help="the first wave: a count or a share (default: 1)")
    start.add_argument(
        "--waves",
        default="100%",
        metavar="SIZES",
        help="how far later waves reach (50%%,100%%; default: 100%%)",
    )
    start.add_argument("--soak", type=int, metavar="S", help="seconds that a device must have kept it (default: 600)")
    start.add_argument("--clock", type=int, metavar="S", help="seconds until a wave asks a person (default: 86400)")
    start.add_argument("--offline-after", type=int, metavar="S", help="silence that counts as offline (default: 900)")
    start.add_argument("--max-harmed", type=int, metavar="N", help="devices that may refuse it (default: 0)")
    start.add_argument("--min-share", type=float, metavar="X", help="share of a wave that must pass (default: 0.9)")
    start.add_argument("--watch", action="store_true", help="then watch it")
    watch = verbs.add_parser("watch", help="follow it live, until it has ended or asks")
    show = verbs.add_parser("show", help="a rollout, as JSON")
    verbs.add_parser("list", help="every rollout, newest first")
    acts = {
        "pause": "no further wave until it is resumed",
        "resume": "let the open wave go on, with a new clock",
        "abort": "end it: who has the release keeps it, nobody else gets it",
        "take-back": "every device runs again what it ran before",
    }
    for verb in [watch, show, *(verbs.add_parser(name, help=what) for name, what in acts.items())]:
        verb.add_argument("rollout", type=int, help="its number")


def main(arguments: Sequence[str]) -> int:
    """Raises `SkerryError` for whatever the user can mend."""
    options = parser().parse_args(arguments)
    from skerry.fleet.client import Client, default_profile, load_profile

    command: Callable[[argparse.Namespace, Client], int] = {
        "token": _token,
        "devices": _devices,
        "device": _device,
        "bundle": _bundle,
        "rollout": _rollout,
        "events": _events,
        "operator": _operator,
    }[options.command]
    with Client(load_profile(options.hub or default_profile(os.environ))) as client:
        return command(options, client)


def _token(options: argparse.Namespace, client: Client) -> int:
    own = default_key(os.environ)
    paths = options.trust or [path for path in [own.with_name(own.name + ".pub")] if path.is_file()]
    from skerry import signing

    trust = [signing.public_pem(signing.load_public_key(path)).decode("ascii") for path in paths]
    if not trust:
        print(f"no signing key of yours is at {own}: its devices must be told whom to trust (--trust)", file=sys.stderr)
    print(client.create_claim(options.group, options.uses, options.hours, trust))
    return 0


def _devices(options: argparse.Namespace, client: Client) -> int:
    found = client.devices(options.group)
    if options.json:
        print(json.dumps([device.model_dump() for device in found], indent=2))
        return 0
    from skerry.fleet.show import devices

    devices(found)
    return 0


def _device(options: argparse.Namespace, client: Client) -> int:
    device = client.device(options.device)
    if options.verb == "revoke":
        client.revoke(device.id)
        print(f"revoked: {device.name} ({device.id})")
    elif options.verb == "clear":
        client.clear(device.id, options.release)
        print(f"{device.name} may try {options.release} again")
    else:
        streams = [stream.model_dump() for stream in client.streams(device.id)]
        print(json.dumps({**device.model_dump(), "streams": streams}, indent=2))
    return 0


def _bundle(options: argparse.Namespace, client: Client) -> int:
    if options.verb == "list":
        from skerry.fleet.show import releases

        releases(client.releases())
        return 0
    sent = [0, 0]

    def tell(done: int, total: int) -> None:
        sent[:] = [done, total]
        if sys.stderr.isatty():
            print(f"\rsent {done / 1e6:.1f} of {total / 1e6:.1f} MB", end="", file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="skerry-push-") as scratch:
        release = client.push(options.bundle, Path(scratch), tell)
    if sys.stderr.isatty() and sent[1]:
        print(file=sys.stderr)
    print(f"pushed: {release.name}@{release.version} ({release.id[:12]}), {sent[1] / 1e6:.1f} MB that were new")
    return 0


def _rollout(options: argparse.Namespace, client: Client) -> int:
    from skerry.fleet import show

    if options.verb == "list":
        show.rollouts(client.rollouts())
        return 0
    if options.verb == "start":
        made = client.act(client.draft(_wanted(options)).id, "start")
        print(f"rollout {made.id} started: {show.waves(made)}")
        return _watch(client, made.id) if options.watch else 0
    if options.verb == "watch":
        return _watch(client, options.rollout)
    if options.verb in _ACTIONS:
        made = client.act(options.rollout, options.verb)
        print(f"rollout {made.id} is {made.state}")
        return 0
    print(client.rollout(options.rollout).model_dump_json(indent=2))
    return 0


def _wanted(options: argparse.Namespace) -> doc.RolloutIn:
    from pydantic import ValidationError

    from skerry.fleet import documents as doc

    given: dict[str, Any] = {
        "soak_s": options.soak,
        "clock_s": options.clock,
        "offline_after_s": options.offline_after,
        "max_harmed": options.max_harmed,
        "min_share": options.min_share,
    }
    try:
        policy = doc.Policy(**{key: value for key, value in given.items() if value is not None})
        waves = [size.strip() for size in options.waves.split(",")]
        return doc.RolloutIn(
            release=options.release, group=options.group, canary=options.canary, waves=waves, policy=policy
        )
    except ValidationError as exc:
        words = "; ".join(f"{'.'.join(str(part) for part in one['loc'])}: {one['msg']}" for one in exc.errors())
        raise UsageError(words) from exc


def _watch(client: Client, number: int) -> int:
    """Until it has ended, or asks: exit code 0 if it is done, 3 otherwise."""
    from skerry.fleet.show import watch

    rollout = watch(lambda: client.rollout(number), lambda seen: seen.state in (*_ENDED, "asking"))
    return 0 if rollout.state == "done" else 3


def _events(options: argparse.Namespace, client: Client) -> int:
    after = options.after
    while True:
        page = client.events(device=options.device, after=after, limit=10_000)
        for event in page.events:
            print(event.model_dump_json())
        if not page.events:
            return 0
        after = page.next


def _operator(options: argparse.Namespace, client: Client) -> int:
    if options.verb == "list":
        for operator in client.operators():
            print(operator.name)
    elif options.verb == "remove":
        client.remove_operator(options.name)
        print(f"removed: {options.name}")
    else:
        from skerry.disk import Disk

        if options.out.exists():
            raise UsageError(f"{options.out} exists; name another file")
        Disk().replace(options.out.absolute(), client.profile_of(options.name), mode=0o600)
        print(f"{options.out} lets {options.name} operate this fleet: `skerry fleet --hub {options.out} …`")
    return 0
