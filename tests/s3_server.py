"""An object store that speaks S3, in a process of its own that can be halted."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path
from urllib.error import URLError

PATIENCE_S = 120
#: What the server is asked with; it takes any.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class S3Server:
    """Buckets in the memory of a moto server."""

    def __init__(self, log: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.endpoint = f"127.0.0.1:{probe.getsockname()[1]}"
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1"]
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "-p", self.endpoint.partition(":")[2]], stdout=output, stderr=output
            )
        deadline = time.monotonic() + PATIENCE_S
        while not self._answers():
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.endpoint}/moto-api/", timeout=5):
                return True
        except URLError:
            return False

    def new_bucket(self) -> str:
        """The URL of a folder in a bucket of its own."""
        bucket = f"bucket-{uuid.uuid4().hex}"
        request = urllib.request.Request(f"http://{self.endpoint}/{bucket}", method="PUT")
        with urllib.request.urlopen(request, timeout=30):
            options = f"region=us-east-1&scheme=http&endpoint_override={self.endpoint}"
            return f"s3://{bucket}/runs?{options}"

    def requests(self) -> list[str]:
        """Everything that it was asked, such as `PUT /bucket/key HTTP/1.1`."""
        plain = re.sub(r"\x1b\[[\d;]*m", "", self._log.read_text())
        return re.findall(r'"([A-Z]+ /[^"]*)"', plain)

    def halt(self) -> None:
        """Take requests and answer none, until `go_on`, which answers them all."""
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._process.pid, signal.SIGCONT)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
