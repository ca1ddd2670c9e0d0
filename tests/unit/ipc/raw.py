"""A client of the socket that writes what a test says, wrong or right."""

from __future__ import annotations

import asyncio
import contextlib

from rondevu_client.protocol import Decoder, Notification, Response, encode_notification, encode_request


class RawClient:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.decoder = Decoder(2**27)
        self.frames = []
        self.msgid = 0

    async def next(self):
        """The next frame of the daemon; None when it has closed the socket."""
        while not self.frames:
            try:
                data = await self.reader.read(65_536)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self.frames.extend(self.decoder.frames(data))
        return self.frames.pop(0)

    def write(self, data):
        self.writer.write(data)

    def notify(self, method, *params):
        self.write(encode_notification(method, list(params)))

    async def request(self, method, **params):
        """The answer's (error, result); notifications before it are kept in `early`."""
        self.msgid += 1
        self.write(encode_request(self.msgid, method, params))
        kept = []
        while not isinstance(frame := await self.next(), Response) or frame.msgid != self.msgid:
            assert frame is not None, "the daemon closed the socket"
            kept.append(frame)
        self.frames[:0] = kept
        return frame.error, frame.result

    async def refused(self, method, **params):
        error, result = await self.request(method, **params)
        assert result is None
        return error

    async def result(self, method, **params):
        error, result = await self.request(method, **params)
        assert error is None, error
        return result

    async def notification(self, method):
        """Parameters of the next notification of that name; others are passed over."""
        while True:
            frame = await self.next()
            assert frame is not None, "the daemon closed the socket"
            if isinstance(frame, Notification) and frame.method == method:
                return frame.params

    async def hello(self):
        return await self.result("hello", protocol=[1], client="raw")

    async def close(self):
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def raw_client(path, *, hello=True):
    client = RawClient(*await asyncio.open_unix_connection(str(path)))
    try:
        if hello:
            await client.hello()
        yield client
    finally:
        await client.close()
