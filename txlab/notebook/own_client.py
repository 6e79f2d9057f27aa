"""The lab as a client of its own server, for the adapters that it makes itself."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tinker


class OwnClient:
    """A session of the lab's own, which begins when it is first needed. Any thread may call it.

    An adapter lives in the session of one SDK client, which numbers the requests and samplers of that session. So what
    the lab makes is in a session of its own, and there is one training client of each adapter.
    """

    def __init__(self, url: str, api_key: str):
        self._url, self._api_key = url, api_key
        self._service: tinker.ServiceClient | None = None
        self._clients: dict[str, tinker.TrainingClient] = {}  # by run id
        self._lock = threading.Lock()

    def next_model(self) -> tuple[str, int]:
        """The session, and a number in it that no model has."""
        with self._lock:
            holder = self._holder()
            return holder.get_session_id(), holder.get_training_client_id()

    def training_client(self, model_id: str) -> tinker.TrainingClient | None:
        """The one that trains a model of this session, None for another's."""
        with self._lock:
            session_id, _, number = model_id.partition(":train:")
            if self._service is None or session_id != self._holder().get_session_id():
                return None
            if model_id not in self._clients:
                self._clients[model_id] = self._connect(model_id, int(number))
            return self._clients[model_id]

    def forget(self, model_id: str) -> None:
        """Let go of the training client of a model that is gone; no effect where there is none."""
        with self._lock:
            self._clients.pop(model_id, None)

    def close(self) -> None:
        """Be silent from now on; the session ends with the server. Does not wait."""
        if self._service is not None:
            self._holder().close()

    def _holder(self) -> Any:
        if self._service is None:
            import tinker

            self._service = tinker.ServiceClient(display_name="lab", base_url=self._url, api_key=self._api_key)
        return self._service.holder

    def _connect(self, model_id: str, number: int) -> tinker.TrainingClient:
        """A training client of a model that is there already; the SDK itself only makes both together."""
        from tinker.lib.public_interfaces.training_client import TrainingClient, fetch_training_info

        holder = self._holder()
        info = holder.run_coroutine_threadsafe(fetch_training_info(holder, model_id)).result()
        return TrainingClient(holder, number, model_id, info=info)
