"""The status page in a real browser: devices, a rollout, and why it was decided; nothing without a token."""

from __future__ import annotations

import subprocess

import msgspec
import needs
import pytest
import tiny
from light import LightFleet
from live_hub import LiveHub

from skerry.fleet.documents import Policy, RolloutIn

pytestmark = pytest.mark.slow


def look(url, folder, picture=None):
    """The page's content after its scripts have run."""
    chromium = needs.program("chromium", "chromium")
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--ignore-certificate-errors",
        "--window-size=1200,900",
    ]
    profile = [f"--user-data-dir={folder}/chromium", "--virtual-time-budget=5000"]
    if picture is not None:
        profile.append(f"--screenshot={picture}")
    done = subprocess.run(
        [chromium, *options, *profile, "--dump-dom", url], capture_output=True, text=True, check=False, timeout=120
    )
    return done.stdout


def test_the_page_shows_the_fleet_and_why_each_wave_opened(tmp_path):
    with (
        LiveHub(tmp_path) as hub,
        LightFleet(tmp_path / "fleet", hub.claim(), 3, pace=20) as fleet,
        hub.client() as client,
    ):
        for version, refused in ((1, None), (2, "<b>its answers differ</b>")):
            bundle, release = tiny.Tiny(version=version).pack(tmp_path)
            client.push(bundle, tmp_path, lambda *_: None)
            for device in fleet.devices:
                device.versions[release] = version
                if refused:
                    device.refuses[version] = refused
            made = client.draft(
                RolloutIn(release=f"tiny@{version}", canary="1", waves=["100%"], policy=Policy(soak_s=0))
            )
            client.act(made.id, "start")
            hub.wait("it ends", lambda n=made.id: client.rollout(n).state in ("done", "taken back"), 60)
        token = msgspec.json.decode((hub.data / "operator.json").read_bytes())["token"]
        page = look(f"https://localhost:{hub.port}/#token={token}", tmp_path, tmp_path / "page.png")
        for text in (
            "light0000",
            "light0002",
            "tiny@1",
            "3 of 3 devices online",
            "of 3 devices 3 passed",
            "taken back",
        ):
            assert text in page, text
        assert "&lt;b&gt;its answers differ" in page, "what a device says is text, never markup"
        assert (tmp_path / "page.png").stat().st_size > 10_000
        stranger = look(f"https://localhost:{hub.port}/", tmp_path / "other")
        assert "API token" in stranger
        assert "light0000" not in stranger
