"""A TCP proxy before a server on this machine, which can hold back what the server says."""

import asyncio
import threading
from typing import Self

CHUNK = 65_536


class Proxy:
    """Passes everything on as long as the block runs, what the server says `delay_s` late."""

    def __init__(self, server_port: int) -> None:
        """Prepare it; `port` is known when the block begins."""
        self.port = 0
        self.delay_s = 0.0
        self._server_port = server_port
        self._loop = asyncio.new_event_loop()
        self._begun = threading.Event()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._run()], daemon=True)

    def __enter__(self) -> Self:
        """Begin to listen."""
        self._thread.start()
        self._begun.wait()
        return self

    def __exit__(self, *_: object) -> None:
        """Close everything."""
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join()

    async def _run(self) -> None:
        listening = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = listening.sockets[0].getsockname()[1]
        self._begun.set()
        await self._stopped.wait()
        listening.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(
            self._pass_on(reader, to_server, late=False), self._pass_on(from_server, writer, late=True)
        )

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, late: bool) -> None:
        try:
            while chunk := await reader.read(CHUNK):
                if late and self.delay_s:
                    await asyncio.sleep(self.delay_s)
                writer.write(chunk)
        except OSError:
            pass  # one side is gone; the other one is told so by the closing
        finally:
            writer.close()
