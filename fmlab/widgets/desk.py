"""The Explorer's desk: what was asked for, what is under way in its workers, and what the reader is told of it."""

import threading
from collections.abc import Callable
from typing import Any

import traitlets

from .about import busy, ready
from .map import Stepped
from .worker import Ticket, Worker

PATIENCE_SECONDS = 0.1  # what takes longer goes on in the worker and shows that it is busy


class Desk(Stepped):
    """A widget with three workers: one for the picture, one for what follows it, one for the reader's questions about a
    token. The picture never waits for the other two."""

    asked = traitlets.Dict().tag(sync=True)
    acknowledged = traitlets.Dict().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)

    _workers: tuple[Worker, ...] = ()  # close() is called on a widget, too, whose opening was refused

    def __init__(self, sent: dict, **traits: Any):
        self._lock = threading.RLock()  # the kernel's thread and the workers' all speak to the browser
        self._worker, self._follower, self._explainer = self._workers = (
            Worker(self._failed), Worker(self._follower_failed), Worker(self._explainer_failed),
        )  # fmt: skip
        self._sent, self._ack = sent, {}
        super().__init__(asked=sent, acknowledged={}, status=ready(), **traits)

    def wait(self) -> "Desk":
        """Return once nothing is being computed."""
        for worker in self._workers:
            worker.join()
        return self

    def cancel(self) -> None:
        """Stop what is being computed: the picture, else what follows it."""
        with self._lock:
            if self._worker.cancel():
                self.status = self.status | {"text": "Stopping …", "share": None}
            elif self.status["state"] == "solving":
                self._follower.cancel()
                self._given_up()

    def close(self) -> None:
        """Stop the workers and leave the notebook."""
        for worker in self._workers:
            worker.close()
        super().close()

    def _given_up(self) -> None:
        """The reader no longer waits for the optimum."""
        raise NotImplementedError

    def _failed(self, ticket: Ticket, error: BaseException) -> None:
        raise NotImplementedError

    def _follower_failed(self, ticket: Ticket, error: BaseException) -> None:
        raise NotImplementedError

    def _explainer_failed(self, ticket: Ticket, error: BaseException) -> None:
        raise NotImplementedError

    def _submit(self, job: Callable[[Ticket], None], patience_seconds: float, asking: bool = False) -> None:
        ticket = self._worker.submit(job, patience_seconds, asking)
        with self._lock, self.hold_sync():
            if not ticket.ended:
                self._announce(busy("Working …", asking=asking))

    def _announce(self, status: dict) -> None:
        self.asked, self.acknowledged, self.status = self._sent, self._ack, status

    def _tell(self, ticket: Ticket, status: dict) -> None:
        with self._lock:
            ticket.check()
            self.status = status

    def _tell_aside(self, ticket: Ticket, status: dict) -> None:
        """Tell of what follows the picture, unless the reader is being told of something nearer."""
        with self._lock:
            ticket.check()
            if self.status["state"] in ("ready", "solving"):
                self.status = status
