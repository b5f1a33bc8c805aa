"""A gateway process, configured like the Serve deployment, without Ray."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from neox_serve.core.types import Pool
from neox_serve.gateway.dispatch import protocol
from neox_serve.gateway.dispatch.link_dispatcher import LinkDispatcher
from neox_serve.gateway.server.server import GatewayServer
from neox_serve.model.model_files import locate_tokenizer, read_facts
from neox_serve.model.tokenizer import Tokenizer
from neox_serve.settings import Settings
from neox_serve.settings.slices import GatewayProcessSettings
from tests.bench.ladder.hosts import hosting

_GATEWAY_ID = "gateway-on-the-ladder"
_READY_S = 60.0


def gateway_server(settings: Settings, dispatcher: protocol.Dispatcher) -> GatewayServer:
    """Returns a gateway server for a dispatcher. The server is not started."""
    folder = locate_tokenizer(settings.model.source, settings.model.revision)
    return GatewayServer(
        settings=GatewayProcessSettings.from_settings(settings),
        gateway_id=_GATEWAY_ID,
        dispatcher=dispatcher,
        tokenizer=Tokenizer(folder),
        facts=read_facts(folder),
    )


@asynccontextmanager
async def gateway(settings: Settings, folder: Path) -> AsyncIterator[str]:
    """Runs the gateway and its dispatcher, and yields the address once the replica is connected."""

    def metrics_text() -> str:
        return server.metrics_text()

    dispatcher = LinkDispatcher(gateway_id=_GATEWAY_ID, resolve_router=hosting.router_lookup(folder), metrics_text=metrics_text)
    server = gateway_server(settings, dispatcher)
    await dispatcher.start()
    try:
        await dispatcher.wait_ready((Pool.GENERATION,), _READY_S)
        await server.start()
        yield f"{settings.gateway.host}:{server.port}"
    finally:
        await server.stop()
        await dispatcher.close()


if __name__ == "__main__":
    hosting.run("gateway", gateway)
