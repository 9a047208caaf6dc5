"""Ask a running Metastable server from Python.

    from metastable.client import Client

    with Client("http://127.0.0.1:8080") as client:
        print(client.classify("samples/cat.png").class_name)

It needs httpx, and no PyTorch.  docs/client.md is the manual.
"""

from metastable.client.answer import Answer
from metastable.client.asynchronous import AsyncClient
from metastable.client.description import Description
from metastable.client.failure import ServerError
from metastable.client.images import pictures
from metastable.client.synchronous import Client

__all__ = ["Answer", "AsyncClient", "Client", "Description", "ServerError", "pictures"]
