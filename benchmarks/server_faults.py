"""A server under attack: is each attack answered as documented, and are other clients served meanwhile?

python -m benchmarks.server_faults

Each attack of `benchmarks.server_attacks` is made against `indistill serve` in a process of its own, all its tries at
the same time, while another client searches by uploads one after the other. If that client is told to come back (503
with Retry-After) it does so, and its delay counts from the first time. At the end the server is told to stop, by
SIGTERM and by SIGINT, under searches and slow uploads. Attackers, client and server share the machine.
"""

import argparse
import asyncio
import signal
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep

import httpx

from benchmarks.machine import describe_machine, report_machine
from benchmarks.served import TOKEN, Served, make_index, run_server
from benchmarks.server_attacks import Attack, list_attacks, send_slow_bodies

DELAY_S = 5.0  # of the other client at most
MEMORY_MB = 1500.0  # at most: bodies within their budget, twice, and images of 89 million pixels in three threads
STOP_S = 2.0
ORDERS = ((signal.SIGTERM, 143), (signal.SIGINT, 130))
PRIVATE = ("evil", TOKEN, "127.0.0.1", "secret", "passwd", "token=", ".png")  # never in the log


@dataclass
class Bystander:
    """A client that searches while others attack; use it as a context.

    Attributes:
        delays: seconds of each search, with all that it was told to wait.
        failures: answers that are no hits.
        peak_mb: the largest memory of the server that was seen.
    """

    served: Served
    content: bytes
    delays: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    peak_mb: float = 0.0

    def __enter__(self) -> "Bystander":
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._search_on)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _search_on(self) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=self.served.url, headers=headers, timeout=60) as client:
            while not self._ended.is_set() or not self.delays:
                begun = monotonic()
                try:
                    while (answer := self._search(client)).status_code == 503:
                        sleep(float(answer.headers["retry-after"]))
                    if answer.status_code != 200:
                        self.failures[str(answer.status_code)] += 1
                except httpx.HTTPError as error:
                    self.failures[type(error).__name__] += 1
                self.delays.append(monotonic() - begun)
                self.peak_mb = max(self.peak_mb, self.served.read_rss_mb())
                sleep(0.02)

    def _search(self, client: httpx.Client) -> httpx.Response:
        return client.post("/search", files={"image": ("secret.png", self.content)})


def attack(served: Served, attack: Attack, content: bytes) -> bool:
    """Makes an attack, prints its line, and returns whether all held."""
    with Bystander(served, content) as bystander:
        sleep(0.5)
        ends = asyncio.run(attack.run(served.port, attack.tries))
        sleep(0.5)
    slowest, failures = max(bystander.delays), bystander.failures
    held = not failures and slowest < DELAY_S and set(ends) <= attack.allowed and bystander.peak_mb < MEMORY_MB
    answers = ", ".join(f"{end}: {count}" for end, count in sorted(ends.items()))
    searches = f"{len(bystander.delays)}{f' ({dict(failures)} failed)' if failures else ''}"
    columns = (attack.name, attack.tries, answers, searches, f"{slowest:.2f} s", f"{bystander.peak_mb:.0f} MB")
    print(f"| {' | '.join(map(str, columns))} |{'' if held else ' <-'}", flush=True)
    return held


def stop_under_load(index: Path, number: signal.Signals, code: int, content: bytes) -> bool:
    """Stops a server while it searches and reads slow uploads, prints how long it took, and returns whether it held."""
    with run_server(index) as served:

        async def press() -> None:
            async with asyncio.timeout(20):
                await send_slow_bodies(served.port, 100)

        def search_on() -> None:
            with httpx.Client(base_url=served.url, timeout=20) as client:
                try:
                    while True:
                        client.post("/search", files={"image": ("secret.png", content)})
                except httpx.HTTPError:
                    return

        threads = [threading.Thread(target=search_on) for _ in range(8)]
        threads.append(threading.Thread(target=lambda: asyncio.run(press())))
        for thread in threads:
            thread.start()
        sleep(3)
        begun = monotonic()
        ended = served.stop(number)
        seconds = monotonic() - begun
        for thread in threads:
            thread.join()
        print(f"{number.name} under load: exit code {ended} after {seconds:.2f} s")
        return ended == code and seconds < STOP_S and "Traceback" not in served.log.read_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", default="", help="the attacks and signals whose name has this")
    arguments, machine, held = parser.parse_args(), describe_machine(), []
    with tempfile.TemporaryDirectory(prefix="server-faults-") as temporary:
        folder = Path(temporary)
        index = make_index(folder, 1200)
        content = (folder / "gallery" / "000007.png").read_bytes()
        token = folder / "token"
        token.write_text(TOKEN)
        attacks = [one for one in list_attacks() if arguments.only in one.name]
        print("| what is tried | tries | ends | searches of others | slowest | memory |\n|---|---|---|---|---|---|")
        for options in ((), ("--token-file", str(token))):
            with run_server(index, *options) as served:
                held += [attack(served, one, content) for one in attacks if one.token == bool(options)]
                log = served.log.read_text()
            told = [word for word in (*PRIVATE, "Traceback") if word in log]
            if told:
                print(f"the log holds {', '.join(told)}")
            held.append(not told)
        orders = [order for order in ORDERS if arguments.only in order[0].name]
        held += [stop_under_load(index, number, code, content) for number, code in orders]
    report_machine(machine)
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
