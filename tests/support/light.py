"""Light devices: they speak the real wire to a real hub, each with a key of its own, and only pretend to run models.

Many of them live in one process, on one event loop in a thread.
"""

from __future__ import annotations

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiomqtt
from simulated import SimulatedDevice
from typing_extensions import Self

from edge_agent import identity
from skerry import mqtt
from skerry.claim import Claim
from skerry.clock import SystemClock, Trust
from skerry.disk import Disk
from skerry.messages import DEATH, Death, Sent, hub_status, pack

_RETRY_S = 0.5


class LightFleet:
    """Devices that joined a hub. Use as a context manager: inside it they are connected.

    Args:
        period_s: between two reports of a device.
        options: of every `SimulatedDevice`.
    """

    def __init__(self, folder: Path, token: str, count: int, *, period_s: float = 0.25, **options: Any) -> None:
        self._period_s = period_s
        self._clock = SystemClock()
        claim = Claim.parse(token)
        with ThreadPoolExecutor(8) as pool:
            self.identities = list(
                pool.map(lambda n: identity.enrol(claim, f"light{n:04d}", folder / str(n), Disk()), range(count))
            )
        self.identities.sort(key=lambda me: me.device)
        self.devices = [
            SimulatedDevice(me.device, random.Random(n), key=me.desired_key, **options)
            for n, me in enumerate(self.identities)
        ]
        self.messages = 0
        self.connects = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._tasks = [
            asyncio.run_coroutine_threadsafe(self._live(me, device), self._loop)
            for me, device in zip(self.identities, self.devices, strict=True)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.5), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def fault(self) -> BaseException | None:
        """What went wrong in a device, if something did."""
        return next((t.exception() for t in self._tasks if t.done() and not t.cancelled()), None)

    async def _live(self, me: identity.Identity, device: SimulatedDevice) -> None:
        context = mqtt.tls(me.ca, me.certificate, me.key_file)
        sent = Sent(utc_ms=0, mono_ms=0, boot="b", trust=Trust.NONE)
        will = mqtt.Will(DEATH.path(me.tenant, me.device), pack("death", Death(run="r", in_order=False), sent, "i"))
        while True:
            client = mqtt.client(me.hub.enrolment.broker, me.device, context, will, keepalive_s=20, timeout_s=30)
            try:
                async with client:
                    self.connects += 1
                    await client.subscribe(
                        [(f"skerry/1/{me.tenant}/{me.device}/down/#", 0), (hub_status(me.tenant), 0)]
                    )
                    await self._connected(client, device)
            except (aiomqtt.MqttError, OSError):
                await asyncio.sleep(_RETRY_S * random.random() + 0.1)

    async def _connected(self, client: aiomqtt.Client, device: SimulatedDevice) -> None:
        born = False

        async def speak() -> None:
            nonlocal born
            while True:
                now = self._clock.utc().ms
                device.live(now)
                messages, born = device.says(now, born=not born), True
                for topic, payload in messages:
                    await client.publish(topic, payload)
                    self.messages += 1
                await asyncio.sleep(self._period_s)

        async def hear() -> None:
            nonlocal born
            async for message in client.messages:
                if str(message.topic).endswith(("/rebirth", "/hub/status")):
                    born = False
                device.hears(str(message.topic), message.payload)

        talk = asyncio.ensure_future(speak())
        try:
            await hear()
        finally:
            talk.cancel()
