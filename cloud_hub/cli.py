"""``skerry hub serve | broker-config``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from skerry.claim import Broker
from skerry.disk import crash_point
from skerry.errors import UsageError
from skerry.home import config_folder, state_folder


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = argparse.ArgumentParser(prog="skerry hub", description="Run the hub of a fleet.")
    commands = p.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="run the hub: API, status page, rollouts, and a broker")
    serve.add_argument("--host", default="0.0.0.0", metavar="ADDRESS", help="listen there (default: everywhere)")  # noqa: S104
    serve.add_argument("--port", type=int, default=8443, metavar="N", help="HTTPS (default: 8443; 0: a free one)")
    serve.add_argument("--mqtt-port", type=int, default=8883, metavar="N", help="MQTT over TLS (default: 8883)")
    serve.add_argument(
        "--broker", metavar="URL", help="use this broker, mqtts://HOST:PORT, instead of the embedded one"
    )
    serve.add_argument(
        "--mqtt", choices=("3.1.1", "5"), default="3.1.1", help="what that broker is spoken to (default: 3.1.1)"
    )
    serve.add_argument(
        "--broker-at",
        metavar="HOST:PORT",
        help="where devices reach the broker, if that is elsewhere (port forwarding)",
    )
    config = commands.add_parser("broker-config", help="write Mosquitto's configuration for this fleet")
    config.add_argument("--port", type=int, default=8883, metavar="N", help="where Mosquitto listens (default: 8883)")
    for command in (serve, config):
        command.add_argument(
            "--data", type=Path, metavar="DIR", help="the hub's data (default: ~/.local/state/skerry/hub)"
        )
        command.add_argument(
            "--name",
            action="append",
            default=[],
            metavar="NAME",
            help="host name or address that devices reach it by; repeatable, they are given the first",
        )
    return p


def main(arguments: Sequence[str]) -> int:
    """Raises `SkerryError` for whatever the user can mend."""
    options = parser().parse_args(arguments)
    data = (options.data or state_folder(os.environ) / "hub").absolute()
    command: Callable[[argparse.Namespace, Path], int] = {"serve": _serve, "broker-config": _broker_config}[
        options.command
    ]
    return command(options, data)


def _serve(options: argparse.Namespace, data: Path) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("mqtt").setLevel(logging.CRITICAL)  # aiomqtt logs what it also raises
    from cloud_hub import app

    config = app.HubConfig(
        data=str(data),
        host=options.host,
        port=options.port,
        mqtt_port=options.mqtt_port,
        names=tuple(options.name) or ("localhost",),
        broker=_broker(options.broker, options.mqtt) if options.broker else None,
        broker_at=_broker(f"mqtts://{options.broker_at}", options.mqtt) if options.broker_at else None,
    )
    return app.serve(config, config_folder(os.environ) / "hub.json", crash_point(os.environ), _say)


def _broker(url: str, protocol: str) -> Broker:
    parts = urlsplit(url)
    try:
        port = parts.port or 8883
    except ValueError:
        port = 0
    if parts.scheme != "mqtts" or not parts.hostname or not port or parts.path.strip("/"):
        raise UsageError(f"{url!r} is no address of a broker; expected mqtts://HOST:PORT")
    return Broker(host=parts.hostname, port=port, protocol=protocol)  # type: ignore[arg-type] # argparse held it to these


def _broker_config(options: argparse.Namespace, data: Path) -> int:
    from cloud_hub.identity import Authority
    from cloud_hub.mosquitto import write_config
    from skerry.clock import SystemClock
    from skerry.disk import Disk

    disk = Disk()
    authority = Authority(data / "keys", disk, SystemClock())
    names = tuple(dict.fromkeys([*options.name, "localhost", "127.0.0.1"]))
    path = write_config(data / "mosquitto", authority, names, options.port, disk)
    print(f"run the broker:  mosquitto -c {path}")
    print(f"and the hub:     skerry hub serve --data {data} --broker mqtts://{names[0]}:{options.port}")
    return 0


def _say(line: str) -> None:
    print(line, flush=True)
