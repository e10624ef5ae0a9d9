"""A proxy in front of a server that breaks calls by chance: of a tracking server, or of an object store."""

import http.client
import random
import socket
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SLOW_SECONDS, EXPIRED_SECONDS = 2.0, 3.0
CUT, NO_REPLY, SLOW, ERROR, EXPIRED = "cut off in the middle", "done, but no reply", "slow", "answers 500", "expired"
KINDS = (CUT, NO_REPLY, SLOW, ERROR, EXPIRED)
# What servers say to an expired login: MLflow's, and S3's.
EXPIRED_LOGIN = (401, b"You are not authenticated")
EXPIRED_KEYS = (403, b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>")


class Breaking:
    """Which calls are broken.

    Attributes:
        uri: of the proxy.
        active: whether calls are broken now.
        chance: by which a call is broken.
        done: how many were, by kind.
    """

    def __init__(self, seed: int, chance: float = 0.2):
        self.uri, self.active, self.chance, self.done = "", False, chance, Counter()
        self._choice, self._lock, self._expired_until = random.Random(seed), threading.Lock(), 0.0

    def draw(self, method, path):
        """What becomes of a call; empty: nothing bad."""
        with self._lock:
            if not self.active:
                return ""
            if time.monotonic() < self._expired_until:
                return EXPIRED
            if self._choice.random() > self.chance:
                return ""
            kind = self._choice.choice(KINDS)
            self.done[kind] += 1
            if kind == EXPIRED:
                self._expired_until = time.monotonic() + EXPIRED_SECONDS
            return kind


@contextmanager
def breaking_proxy(upstream, expired, seed):
    """A proxy of the server at a port of this machine; gives what it breaks."""
    breaking = Breaking(seed)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self):
            length, kind = int(self.headers.get("Content-Length") or 0), breaking.draw(self.command, self.path)
            body = self.rfile.read(length // 2 if kind == CUT else length)
            if kind == SLOW:
                time.sleep(SLOW_SECONDS)
            if kind == CUT:
                self.hang_up()
            elif kind == EXPIRED:
                self.answer(*expired)
            elif kind == ERROR:
                self.answer(500, b"broken")
            else:
                answer = self.ask(body)
                if kind == NO_REPLY:
                    self.hang_up()
                else:
                    self.answer(*answer)

        def ask(self, body):
            connection = http.client.HTTPConnection("127.0.0.1", upstream)
            try:
                connection.request(self.command, self.path, body, dict(self.headers.items()))
                answer = connection.getresponse()
                return answer.status, answer.read(), answer.headers.items()
            except OSError:
                return 502, b"nobody answers"
            finally:
                connection.close()

        def answer(self, status, content, headers=()):
            self.send_response_only(status)
            length = str(len(content))
            for name, value in headers:
                if name.lower() == "content-length":
                    length = value
                elif name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            self.send_header("Content-Length", length)
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else content)

        def hang_up(self):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # Clients that are killed or give up leave broken connections.
    server.handle_error = lambda *_: None
    breaking.uri = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield breaking
    finally:
        server.shutdown()
        server.server_close()
