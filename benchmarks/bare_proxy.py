"""The least that a proxy over aiohttp does: passes requests to one upstream, and answers back.

    python benchmarks/bare_proxy.py http://127.0.0.1:9000 PORT

No keys, checks, deadlines, experiment, metrics or log: what a gateway costs is measured beside it.
"""

from __future__ import annotations

import asyncio
import sys

import aiohttp
from aiohttp import web
from echo_server import run


async def main(upstream: str, port: int) -> None:
    """Serve until killed."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def passed(request: web.Request) -> web.Response:
            body = await request.read()
            headers = {"content-type": "application/json"}
            async with session.post(upstream + request.path, data=body, headers=headers) as reply:
                raw = await reply.read()
                return web.Response(status=reply.status, body=raw, content_type="application/json")

        app = web.Application()
        app.router.add_post("/{path:.*}", passed)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print(f"serving on http://127.0.0.1:{port}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    run(main(sys.argv[1], int(sys.argv[2])))
