"""Load a server and check every answer: `python load.py URL MODEL [--clients N] [--seconds S]`.

Each client sends the server's own sample of the model, and again as soon as the answer is there, over a connection of
its own. Every answer must be equal to the first; exit code 1 if one is not, or fails.
"""

import argparse
import http.client
import json
import statistics
import threading
import time
import urllib.parse
import urllib.request


class Client(threading.Thread):
    """One connection, one request at a time, until `deadline` (time.monotonic)."""

    def __init__(self, host: str, path: str, body: bytes, expected: list[object], deadline: float) -> None:
        super().__init__()
        self.host, self.path, self.body, self.expected, self.deadline = host, path, body, expected, deadline
        self.took_s: list[float] = []
        self.wrong = 0

    def run(self) -> None:
        connection = http.client.HTTPConnection(self.host, timeout=10)
        while time.monotonic() < self.deadline:
            begun = time.perf_counter()
            try:
                connection.request("POST", self.path, self.body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                text = answer.read()
                self.wrong += answer.status != 200 or not same(json.loads(text)["outputs"], self.expected)
            except (OSError, http.client.HTTPException):
                self.wrong += 1
                connection.close()  # the next request opens another
            self.took_s.append(time.perf_counter() - begun)
        connection.close()


def same(outputs: list[dict[str, object]], expected: list[object]) -> bool:
    """Whether all numbers agree to a thousandth: joined with others, a row may be rounded otherwise."""
    flat = [value for output in outputs for value in output["data"]]
    return len(flat) == len(expected) and all(abs(a - b) <= 1e-3 * max(1, abs(b)) for a, b in zip(flat, expected))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="http://127.0.0.1:8000")
    parser.add_argument("model")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5)
    args = parser.parse_args()
    path = f"/v2/models/{args.model}"
    try:
        with urllib.request.urlopen(f"{args.url}{path}/sample") as reply:
            sample = json.load(reply)
    except OSError as error:
        raise SystemExit(f"{args.url} does not give a sample of '{args.model}': {error}") from error
    body = json.dumps({"inputs": sample["inputs"]}).encode()  # all outputs as numbers, not the best labels
    with urllib.request.urlopen(f"{args.url}{path}/infer", body) as reply:
        expected = [value for output in json.load(reply)["outputs"] for value in output["data"]]

    host = urllib.parse.urlsplit(args.url).netloc
    deadline = time.monotonic() + args.seconds
    clients = [Client(host, f"{path}/infer", body, expected, deadline) for _ in range(args.clients)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    took_s = [s for client in clients for s in client.took_s]
    wrong = sum(client.wrong for client in clients)
    p50, p99 = statistics.median(took_s), statistics.quantiles(took_s, n=100)[98]
    print(f"{len(took_s) / args.seconds:.0f} requests a second from {args.clients} clients, {wrong} wrong")
    print(f"p50 {1e3 * p50:.2f} ms, p99 {1e3 * p99:.2f} ms")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
