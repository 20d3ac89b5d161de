"""An object store that speaks S3, in a process of its own, and a way to it that can be cut."""

import asyncio
import contextlib
import re
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

#: What the server is asked with; it takes any.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_EC2_METADATA_DISABLED": "true",
}

SERVE = """
import threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
threading.Event().wait()
"""


class S3Server:
    """Buckets in the memory of a moto server."""

    def __init__(self, log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", SERVE], stdout=subprocess.PIPE, stderr=output, text=True
            )
        assert self._process.stdout is not None
        port = self._process.stdout.readline().strip()
        assert port, log.read_text()
        self.endpoint = f"127.0.0.1:{port}"

    def new_bucket(self, through: str | None = None) -> str:
        """The URL of a folder in a bucket of its own, asked for `through` another endpoint."""
        bucket = f"bucket-{uuid.uuid4().hex}"
        request = urllib.request.Request(f"http://{self.endpoint}/{bucket}", method="PUT")
        with urllib.request.urlopen(request, timeout=60):
            options = f"region=us-east-1&scheme=http&endpoint_override={through or self.endpoint}"
            return f"s3://{bucket}/runs?{options}"

    def requests(self) -> list[str]:
        """Everything that it was asked, such as `PUT /bucket/key HTTP/1.1`."""
        plain = re.sub(r"\x1b\[[\d;]*m", "", self._log.read_text())
        return re.findall(r'"([A-Z]+ /[^"]*)"', plain)

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


class Relay:
    """Passes connections on to an endpoint, but for the time that it is cut: then it refuses."""

    def __init__(self, endpoint: str) -> None:
        self._to = endpoint.split(":")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._port = 0
        self.mend()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._port}"

    def mend(self) -> None:
        """Take connections, again by the same port."""
        self._do(self._listen())

    def cut(self) -> None:
        """Take no more connections, and break those that there are."""
        self._do(self._refuse())

    def end(self) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(60)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._open:
            writer.transport.abort()
        while self._open:
            await asyncio.sleep(0.01)

    async def _pass_on(self, here: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        there, on = await asyncio.open_connection(*self._to)
        self._open |= {back, on}
        await asyncio.gather(self._copy(here, on), self._copy(there, back))
        self._open -= {back, on}

    @staticmethod
    async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()
        target.close()
