"""schemathesis against the running hub: whatever a stranger or an operator sends, no 5xx, and answers as documented."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from live_hub import LiveHub

pytestmark = pytest.mark.slow

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.parametrize("known", [True, False], ids=["operator", "stranger"])
def test_no_request_breaks_the_hub(known, tmp_path):
    with LiveHub(tmp_path) as hub:
        token = msgspec.json.decode((hub.data / "operator.json").read_bytes())["token"]
        headers = ["-H", f"Authorization: Bearer {token}"] if known else []
        url = f"https://localhost:{hub.port}/openapi.json"
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")), "run", url, "--tls-verify",
                str(hub.data / "keys" / "ca.pem"), "--checks", CHECKS, "--max-examples", "12",
                "--generation-deterministic", "--suppress-health-check", "all", "--no-color", "--continue-on-failure",
                *headers,
            ],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        assert hub.process.poll() is None
        for word in ("Traceback", "a bug", " ERROR "):
            assert word not in hub.output(), hub.output()[-3000:]
