"""One thread for what takes longer than a frame; the latest job wins and a job can be cancelled."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Cancelled(Exception):
    """A job found that it is no longer wanted."""


class Ticket:
    """A job's right to go on: `check` raises Cancelled once a newer job came or the reader cancelled."""

    def __init__(self, asking: bool = False):
        self.asking = asking
        self._unwanted, self.over = threading.Event(), threading.Event()
        self.future: Future | None = None
        self.ended = False  # set by whoever shows the job's end, so that nobody shows it busy afterwards

    def check(self) -> None:
        if self._unwanted.is_set():
            raise Cancelled

    def cancel(self) -> None:
        self._unwanted.set()

    def pause(self, seconds: float) -> None:
        """Wait; raises Cancelled as soon as the job is unwanted."""
        if self._unwanted.wait(seconds):
            raise Cancelled

    @property
    def running(self) -> bool:
        return self.future is not None and not self.over.is_set()


class Worker:
    """Runs one job at a time in its own thread. `failed(ticket, error)` hears of the latest job's error, Cancelled too.

    Errors are taken from the job's future, so that whatever a user's policy raises reaches the reader, and nothing is
    caught that Python itself would want to see.
    """

    def __init__(self, failed: Callable[[Ticket, BaseException], None]):
        self._failed = failed
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="fmlab-explorer")
        self._latest = Ticket()

    def submit(self, job: Callable[[Ticket], None], patience_seconds: float, asking: bool = False) -> Ticket:
        """Start a job in place of the running one, and wait for its end, but at most so long."""
        self._latest.cancel()
        ticket = self._latest = Ticket(asking)
        ticket.future = self._pool.submit(self._run, job, ticket)
        ticket.future.add_done_callback(lambda future: self._ended(ticket, future))
        ticket.over.wait(patience_seconds)
        return ticket

    @staticmethod
    def _run(job: Callable[[Ticket], None], ticket: Ticket) -> None:
        ticket.check()
        job(ticket)

    def _ended(self, ticket: Ticket, future: Future) -> None:
        try:
            if ticket is self._latest and not future.cancelled() and (error := future.exception()) is not None:
                self._failed(ticket, error)
        finally:
            ticket.over.set()  # once its failure has been told; the future itself is done before that

    def cancel(self) -> bool:
        """Ask the running job to stop at its next check; False where none runs."""
        self._latest.cancel()
        return self._latest.running and not self._latest.ended

    def join(self) -> None:
        """Wait until the latest job has ended."""
        if self._latest.future is not None:
            self._latest.over.wait()

    def close(self) -> None:
        """Cancel what runs and start nothing more."""
        self._latest.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)
