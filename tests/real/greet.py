"""A plugin in Python: counts its visits and says so."""

from wit_world import exports
from wit_world.imports import kv
from wit_world.imports.types import Response


class HttpTrigger(exports.HttpTrigger):
    def handle(self, request):
        kv.increment("visits", "python", 1)
        visits = kv.counter("visits", "python")
        text = f"hello from Python at {request.path}, visit {visits}"
        return Response(200, [("content-type", b"text/plain")], text.encode())
