"""From a training to MLflow by way of the disk, without the training ever waiting for either.

One thread writes what it is handed into the spool; another delivers from there, in order, and tries again for as long
as the server does not answer.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpt_mlflow.errors import HptError
from hpt_mlflow.tracking.connection import reason
from hpt_mlflow.tracking.delivery.entries import BATCH, Delivery
from hpt_mlflow.tracking.delivery.spool import Entry, Spool, SpoolError

# Metrics are delivered together, at most so often.
PAUSE_SECONDS = 10.0
HEARTBEAT_SECONDS = 30.0
LONGEST_BACKOFF_SECONDS = 30.0
# A server that answers, but refuses an entry, is asked again after so long.
REFUSED_SECONDS = 60.0
GOODBYE_SECONDS = 5.0
# How many training states wait at most; older ones are of no use any more.
STATES_KEPT = 2

log = logging.getLogger("hpt_mlflow")


@dataclass(eq=False)
class Parcel:
    """An entry on its way.

    Attributes:
        answer: what the delivery gives back.
        again_at: when it is tried again after it was refused.
        alone: whether it goes by itself, since a batch that it was in was refused.
        refusal: why it was.
    """

    entry: Entry
    answer: Future[str] = field(default_factory=Future)
    again_at: float = 0.0
    alone: bool = False
    refusal: str = ""


class Courier:
    """Takes what a run has to tell, and delivers it."""

    def __init__(self, spool: Spool, delivery: Delivery, title: str) -> None:
        self.spool = spool
        self._title = title
        self._delivery = delivery
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._parcels = [Parcel(entry) for entry in spool.entries()]
        self._orders_open = 0
        self._hurry = False
        self._closed = False
        self._away = ""
        self._sending: Parcel | None = None
        self._warned: set[str] = set()
        self._sent_at = time.monotonic()
        self._threads = [
            threading.Thread(target=work, name=f"hpt{work.__name__}", daemon=True)
            for work in (self._write_all, self._send_all)
        ]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:
            self._orders.put(None)
            raise HptError(
                f"{title}: cannot start a thread ({error}); look at the memory that is free and at the limit of "
                "processes (ulimit -u)"
            ) from error

    def put(self, kind: str, payload: dict[str, Any], fill: Callable[[Path], None] | None = None) -> Future[str]:
        """Hand over something to be told; see `Spool.add`. Returns at once."""
        answer: Future[str] = Future()

        def write() -> None:
            try:
                parcel = Parcel(self.spool.add(kind, payload, fill), answer)
            except SpoolError as error:
                named = _named(Entry(0, kind, payload))
                self._warn(kind, f"{self._title}: cannot keep {named} in {self.spool.folder} ({error}); it goes on")
                answer.set_exception(error)
                return
            if parcel.entry.unwritten:
                self._warn(
                    "unwritten",
                    f"{self._title}: cannot write to {self.spool.folder} ({parcel.entry.unwritten}); it goes on, and "
                    "what MLflow has not taken yet would be lost with the process",
                )
            with self._changed:
                self._parcels.append(parcel)
            if kind == "state":
                self.drop_states(keep=STATES_KEPT)

        with self._changed:
            self._orders_open += 1
        self._orders.put(write)
        return answer

    def wait_until_written(self) -> None:
        """Wait until all that was handed over is in the spool, or has failed to get there."""
        with self._changed:
            self._changed.wait_for(lambda: not self._orders_open)

    def drop_states(self, keep: int) -> None:
        """Forget training states that wait, but for the newest ones and the one that may be on its way just now."""
        with self._changed:
            states = [
                parcel for parcel in self._parcels if parcel.entry.kind == "state" and parcel is not self._sending
            ]
            for parcel in states[: len(states) - keep]:
                self.spool.remove(parcel.entry)
                self._parcels.remove(parcel)
                parcel.answer.set_exception(HptError("a newer training state took its place"))

    def settle(self, patience_seconds: float) -> list[Parcel]:
        """Deliver all that waits, now; gives what could not be delivered within the time, or was refused."""
        end = time.monotonic() + patience_seconds
        with self._changed:
            self._hurry = True
            for parcel in self._parcels:
                parcel.again_at, parcel.refusal = 0.0, ""
            self._changed.notify_all()
            try:
                self._changed.wait_for(self._is_settled, max(0.0, end - time.monotonic()))
            finally:
                self._hurry = False
            return list(self._parcels)

    def close(self, patience_seconds: float) -> list[Parcel]:
        """Settle, and end the threads."""
        left = self.settle(patience_seconds)
        self._orders.put(None)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        # What is on its way now must not overlap with who comes next.
        for thread in self._threads:
            thread.join(GOODBYE_SECONDS)
        return left

    def why(self, left: list[Parcel]) -> str:
        """Why something is left."""
        return self._away or next((parcel.refusal for parcel in left if parcel.refusal), "it takes too long")

    def _is_settled(self) -> bool:
        return not self._orders_open and all(parcel.refusal or self._is_held(parcel) for parcel in self._parcels)

    def _is_held(self, parcel: Parcel) -> bool:
        """Whether a parcel waits for others to be delivered first, whatever happens."""
        kind = parcel.entry.payload.get("after") if parcel.entry.kind == "end" else None
        return kind is not None and any(other.entry.kind == kind for other in self._parcels)

    def _write_all(self) -> None:
        while (write := self._orders.get()) is not None:
            write()
            with self._changed:
                self._orders_open -= 1
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
            if not parcels:
                self._beat()
                continue
            if self._send(parcels):
                backoff = 1.0
            else:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._hurry, backoff)
                    hurried = self._hurry
                    if hurried and not self._closed:
                        self._changed.wait_for(lambda: self._closed, 1.0)
                backoff = 1.0 if hurried else min(LONGEST_BACKOFF_SECONDS, 2 * backoff)

    def _due(self) -> list[Parcel]:
        """What is to be delivered next: one entry, or all metrics up to the next entry that is none."""
        now = time.monotonic()
        waiting = [parcel for parcel in self._parcels if parcel.again_at <= now and not self._is_held(parcel)]
        if not waiting or waiting[0].entry.kind != "metrics" or waiting[0].alone:
            return waiting[:1]
        metrics: list[Parcel] = []
        count = 0
        for parcel in waiting:
            count += len(parcel.entry.payload.get("metrics", ()))
            if parcel.entry.kind != "metrics" or parcel.alone or (metrics and count > BATCH):
                break
            metrics.append(parcel)
        is_time = self._hurry or len(metrics) < len(waiting) or now - self._sent_at > PAUSE_SECONDS
        return metrics if is_time else []

    def _send(self, parcels: list[Parcel]) -> bool:
        """Deliver; False where the server does not answer."""
        with self._changed:
            if not set(parcels) <= set(self._parcels):
                return True
            self._sending = parcels[0]
        failure = None
        try:
            answer = self._delivery.deliver([parcel.entry for parcel in parcels])
        # Whatever happens on the way: tracking never ends a training.
        except Exception as error:
            failure = error
        if failure is not None:
            # Before a refusal is noted: who waits for that may drop the parcel at once.
            with self._changed:
                self._sending = None
            return self._note_failure(parcels, failure)
        self._sent_at = time.monotonic()
        if self._away:
            log.warning("%s: the tracking server answers again", self._title)
            self._away = ""
        for parcel in parcels:
            self.spool.remove(parcel.entry)
            parcel.answer.set_result(answer)
        self._forget(parcels)
        return True

    def _note_failure(self, parcels: list[Parcel], error: Exception) -> bool:
        if not self._delivery.answers():
            if not self._away:
                log.warning(
                    "%s: the tracking server does not answer (%s); it goes on, and what MLflow should know waits in %s",
                    self._title,
                    reason(error),
                    self.spool.folder,
                )
            self._away = reason(error)
            return False
        if len(parcels) > 1:
            # Perhaps it is one of them that is refused.
            for parcel in parcels:
                parcel.alone = True
            return True
        refused = parcels[0].entry
        text = f"{self._title}: MLflow refuses {_named(refused)} ({reason(error)}); it goes on"
        self._warn(f"refused {refused.kind}", text)
        with self._changed:
            for parcel in parcels:
                parcel.refusal = reason(error)
                parcel.again_at = time.monotonic() + REFUSED_SECONDS
            self._changed.notify_all()
        return True

    def _forget(self, parcels: list[Parcel]) -> None:
        with self._changed:
            # Until now nobody may drop what was sent: its answer is given once.
            self._sending = None
            self._parcels = [parcel for parcel in self._parcels if parcel not in parcels]
            self._changed.notify_all()

    def _beat(self) -> None:
        if time.monotonic() - self._sent_at < HEARTBEAT_SECONDS:
            return
        self._sent_at = time.monotonic()
        try:
            self._delivery.heartbeat()
        # As above; and the next metrics will tell.
        except Exception as error:
            log.debug("no heartbeat: %s", error)

    def _warn(self, what: str, text: str) -> None:
        """Warn once of each thing."""
        if what not in self._warned:
            self._warned.add(what)
            log.warning("%s", text)


def _named(entry: Entry) -> str:
    """What an entry is called in a message."""
    payload = entry.payload
    return {
        "artifacts": f"the files {', '.join(payload.get('files', ['']))}",
        "state": f"the training state of step {payload.get('step')}",
        "model": f"the model {payload.get('name')}",
        "version": f"a version of {payload.get('model_name')}",
        "end": f"the end as {payload.get('status')}",
    }.get(entry.kind, entry.kind)
