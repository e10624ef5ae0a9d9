"""From a training to MLflow by way of the disk, without the training ever waiting for either.

One thread writes entries into the spool; another delivers them from there, in order, and retries as long as the server
does not answer.
"""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.delivery.content import Content
from hpt_mlflow.tracking.delivery.entries import deliver, describe
from hpt_mlflow.tracking.delivery.run_client import RunClient
from hpt_mlflow.tracking.delivery.run_entries import End, Metrics, State
from hpt_mlflow.tracking.delivery.spool import Entry, Spool, SpoolError
from hpt_mlflow.tracking.reasons import reason, refusal

# Metrics are delivered together, at most this often.
PAUSE_SECONDS = 10.0
HEARTBEAT_SECONDS = 30.0
LONGEST_BACKOFF_SECONDS = 30.0
# How long until an entry that the server refused is tried again.
REFUSED_SECONDS = 60.0
GOODBYE_SECONDS = 5.0
# How many training states wait at most; older ones are useless.
STATES_KEPT = 2

log = logging.getLogger("hpt_mlflow")


@dataclass(eq=False)
class Parcel:
    """An entry on its way.

    Attributes:
        answer: what the delivery returns.
        again_at: when it is tried again after it was refused.
        refusal: why it was refused, or empty.
    """

    entry: Entry
    answer: Future[str] = field(default_factory=Future)
    again_at: float = 0.0
    refusal: str = ""


class Courier:
    """Takes the entries of a run, and delivers them."""

    def __init__(self, spool: Spool, client: RunClient, title: str) -> None:
        self.spool = spool
        self._title = title
        self._client = client
        self._writes: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._parcels = [Parcel(entry) for entry in spool.entries()]
        self._unwritten = 0
        self._hurry = False
        self._closed = False
        self._outage = ""
        self._sending: Parcel | None = None
        self._warned: set[str] = set()
        self._sent_at = time.monotonic()
        self._threads = [
            threading.Thread(target=work, name=f"hpt{work.__name__}", daemon=True)
            for work in (self._write_all, self._send_all)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, content: Content, fill: Callable[[Path], None] | None = None) -> Future[str]:
        """Hand over an entry; see `Spool.add`. Returns at once."""
        answer: Future[str] = Future()

        def write() -> None:
            try:
                parcel = Parcel(self.spool.add(content.kind, content.payload, fill), answer)
            except SpoolError as error:
                self._warn(content.kind, f"cannot write {content} to {self.spool.folder} ({error}); the run continues")
                answer.set_exception(error)
                return
            if parcel.entry.unwritten:
                self._warn(
                    "unwritten",
                    f"cannot write to {self.spool.folder} ({parcel.entry.unwritten}); the run continues, but what "
                    "MLflow has not received yet would be lost with the process",
                )
            with self._changed:
                self._parcels.append(parcel)
            if isinstance(content, State):
                self.drop_states(keep=STATES_KEPT)

        with self._changed:
            self._unwritten += 1
        self._writes.put(write)
        return answer

    def wait_until_written(self) -> None:
        """Wait until everything that was handed over is in the spool, or could not be written."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unwritten)

    def drop_states(self, keep: int) -> None:
        """Drop waiting training states except for the newest ones, and one that may be on its way."""
        with self._changed:
            states = [each for each in self._parcels if each.entry.kind == State.kind and each is not self._sending]
            for parcel in states[: len(states) - keep]:
                self.spool.remove(parcel.entry)
                self._parcels.remove(parcel)
                parcel.answer.set_exception(HptError("a newer training state took its place"))

    def flush(self, patience_seconds: float) -> list[Parcel]:
        """Deliver everything that waits, now; gives what could not be delivered, or was refused.

        Args:
            patience_seconds: how long to wait without a delivery that succeeds: a slow server is not one that is away.
        """
        return self._flush(patience_seconds, patience_seconds_in_all=math.inf)

    def _flush(self, patience_seconds: float, patience_seconds_in_all: float) -> list[Parcel]:
        with self._changed:
            begun = self._sent_at = time.monotonic()
            self._hurry = True
            for parcel in self._parcels:
                parcel.again_at, parcel.refusal = 0.0, ""
            self._changed.notify_all()
            try:
                while not self._is_flushed():
                    end = min(self._sent_at + patience_seconds, begun + patience_seconds_in_all)
                    if end <= time.monotonic():
                        break
                    self._changed.wait(end - time.monotonic())
            finally:
                self._hurry = False
            return list(self._parcels)

    def close(self, patience_seconds: float) -> list[Parcel]:
        """Flush within this time, however well that goes, and end the threads."""
        left = self._flush(patience_seconds, patience_seconds)
        self.stop()
        return left

    def stop(self) -> None:
        """End the threads."""
        self._writes.put(None)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        # A delivery that is on its way must not overlap with those of the next courier.
        for thread in self._threads:
            thread.join(GOODBYE_SECONDS)

    def why(self, left: list[Parcel]) -> str:
        """Why parcels are left."""
        return self._outage or next((parcel.refusal for parcel in left if parcel.refusal), "it takes too long")

    def _is_flushed(self) -> bool:
        return not self._unwritten and all(parcel.refusal or self._is_held(parcel) for parcel in self._parcels)

    def _is_held(self, parcel: Parcel) -> bool:
        """Whether a parcel waits for others to be delivered first, whatever happens."""
        kind = parcel.entry.payload.get("after") if parcel.entry.kind == End.kind else None
        return kind is not None and any(each.entry.kind == kind for each in self._parcels)

    def _write_all(self) -> None:
        while (write := self._writes.get()) is not None:
            write()
            with self._changed:
                self._unwritten -= 1
                self._changed.notify_all()

    def _send_all(self) -> None:
        backoff = 1.0
        while True:
            with self._changed:
                parcels = self._due()
                if not parcels and not self._closed:
                    self._changed.wait(1.0)
                    parcels = self._due()
                if self._closed:
                    return
                self._sending = parcels[0] if parcels else None
            if not parcels:
                self._beat()
            elif self._send(parcels):
                backoff = 1.0
            else:
                with self._changed:
                    # Whoever flushes does not wait for a long pause to end.
                    self._changed.wait_for(lambda: self._closed or self._hurry, backoff - 1.0)
                    self._changed.wait_for(lambda: self._closed, 1.0)
                    backoff = 1.0 if self._hurry else min(LONGEST_BACKOFF_SECONDS, 2 * backoff)

    def _due(self) -> list[Parcel]:
        """What to deliver next: one entry, or all metrics up to the next entry of another kind."""
        now = time.monotonic()
        waiting = [parcel for parcel in self._parcels if parcel.again_at <= now and not self._is_held(parcel)]
        metrics = list(takewhile(lambda parcel: parcel.entry.kind == Metrics.kind, waiting))
        if not metrics:
            return waiting[:1]
        is_time = self._hurry or len(metrics) < len(waiting) or now - self._sent_at > PAUSE_SECONDS
        return metrics if is_time else []

    def _send(self, parcels: list[Parcel]) -> bool:
        """Deliver; False if the server does not answer."""
        try:
            answer = deliver(self._client, [parcel.entry for parcel in parcels])
        # Whatever happens: tracking never ends a training.
        except Exception as error:
            if not self._client.answers():
                self._record_outage(error)
                return False
            if len(parcels) > 1:
                # The cause may be one of them.
                return all(self._send([parcel]) for parcel in parcels)
            self._record_refusal(parcels[0], error)
            return True
        self._sent_at = time.monotonic()
        if self._outage:
            log.warning("%s: the tracking server answers again", self._title)
            self._outage = ""
        for parcel in parcels:
            self.spool.remove(parcel.entry)
            parcel.answer.set_result(answer)
        with self._changed:
            # Until now, what was sent must not be dropped: its answer is set once.
            self._sending = None
            self._parcels = [parcel for parcel in self._parcels if parcel not in parcels]
            self._changed.notify_all()
        return True

    def _record_outage(self, error: Exception) -> None:
        if not self._outage:
            log.warning(
                "%s: the tracking server %s (%s); the run continues, and its entries wait in %s",
                self._title,
                "refuses everything" if refusal(error) else "does not answer",
                reason(error),
                self.spool.folder,
            )
        with self._changed:
            self._sending = None
            self._outage = reason(error)

    def _record_refusal(self, parcel: Parcel, error: Exception) -> None:
        refused = parcel.entry
        self._warn(
            f"refused {refused.kind}", f"MLflow refuses {describe(refused)} ({reason(error)}); the run continues"
        )
        with self._changed:
            self._sending = None
            parcel.refusal = reason(error)
            parcel.again_at = time.monotonic() + REFUSED_SECONDS
            self._changed.notify_all()

    def _beat(self) -> None:
        if time.monotonic() - self._sent_at < HEARTBEAT_SECONDS:
            return
        self._sent_at = time.monotonic()
        try:
            self._client.heartbeat()
        # As above; the next metrics send one too.
        except Exception as error:
            log.debug("no heartbeat: %s", error)

    def _warn(self, what: str, text: str) -> None:
        """Warn once per `what`."""
        if what not in self._warned:
            self._warned.add(what)
            log.warning("%s: %s", self._title, text)
