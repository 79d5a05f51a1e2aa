"""Our end that receives: trainerd's own link, fleet, lanes, decoder and store, in a process of its own.

``make`` is the one place that knows how trainerd puts them together.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from protocol.keys import load_or_make
from protocol.step import Step
from tests.bench.linkbench.clock import Counter, options, say
from tests.bench.linkbench.load import ROVER
from trainerd import depth
from trainerd.access import Access
from trainerd.fleet import Fleet
from trainerd.ingest import Link
from trainerd.mailbox import Mailbox
from trainerd.release.registry import Registry
from trainerd.run import RunFile
from trainerd.settings import Settings

ONE_FOR_ALL_MBYTES_PER_S = 1e5
"""One sender stands for a whole fleet: what a single rover may send is no limit here."""


class Discard:
    """A consumer that counts decoded records and keeps none."""

    def __init__(self, counter):
        self._counter = counter
        self.records = 0
        self.steps = 0

    def consume(self, record, lane="live"):
        self.records += 1
        self.steps += isinstance(record, Step)
        self._counter.set(self.records)
        return True

    pass_over = consume

    def close(self, rover_id, boot_id):
        pass


class NoStore:
    """Stands for the episode store where nothing is to be durable: what came counts as safe at once."""

    is_open = True

    def __init__(self, post, on_safe):
        self._post, self._on_safe, self._came = post, on_safe, []

    def append(self, record):
        self._came.append((record.rover_id, record.boot_id, record.seq))
        if len(self._came) == 1:
            self._post(self._flush)
        return True

    def _flush(self):
        came, self._came = self._came, []
        self._on_safe(came)

    def received(self, rover_id, boot_id):
        return []

    gone = received

    def begin_boot(self, *names, **facts):
        pass

    close_boot = give_up = begin_boot


def make(told, consumer):
    """Return (link, fleet, a function that stops what else runs, facts for the sender).

    ``told``: ``durable`` stores and syncs before the acknowledgement, ``curve`` encrypts.
    """
    depth.install()
    folder = Path(told["folder"])
    settings = Settings(port=0, state_dir=folder)
    settings = replace(settings, link=replace(settings.link, rover_mbytes_per_s=ONE_FOR_ALL_MBYTES_PER_S))
    mailbox, run_file = Mailbox(), RunFile(folder / "run.json")
    links = []
    store, stop = NoStore(mailbox.post, lambda ids: links[0].safe(ids)), lambda: None  # noqa: PLW0108 - it comes later
    if told["durable"]:
        store, stop = open_store(folder, lambda ids: mailbox.post(partial(links[0].safe, ids)))
    fleet = Fleet(run_file, settings.link, store, check_specs=lambda robot, task: None, on_specs=lambda run: None)
    facts, secrets = {}, {}
    if told["curve"]:
        keys, rover = load_or_make(folder / "keys" / "curve.json"), load_or_make(folder / "rover" / "curve.json")
        access = Access(folder / "rovers.json")
        access.add(ROVER, rover.public)
        secrets = {"keys": keys, "access": access}
        facts = {"server_key": keys.public, "keys": [rover.public, rover.secret]}
    link = Link(settings, mailbox, fleet, consumer, Registry(folder / "policies"), store, **secrets)
    links.append(link)
    return link, fleet, stop, facts


def open_store(folder, on_durable):
    """Return the episode store, started, and what stops it."""
    from trainerd.episodes.catalogue import Catalogue
    from trainerd.episodes.settings import StoreSettings
    from trainerd.episodes.store import Store

    store = Store(folder / "episodes", Catalogue(folder / "catalogue.db"), StoreSettings(), on_durable=on_durable)
    store.start()
    return store, store.stop


def main():
    told = options()
    consumer = Discard(Counter(told["counter"]))
    link, fleet, stop, facts = make(told, consumer)
    link.start()
    say(port=link.port, **facts)
    sys.stdin.read()  # until whoever started this closes it
    link.stop()
    link._thread.join(10)
    stop()
    if link._ended.done() and link._ended.exception() is not None:
        raise SystemExit(f"bench link: the link ended: {link._ended.exception()!r}")
    say(
        consumed=consumer.records,
        steps=consumer.steps,
        malformed=sum(link.malformed.values()),
        duplicates=fleet.tally.duplicates,
        refused=fleet.tally.refused,
        lost=fleet.tally.lost,
    )


if __name__ == "__main__":
    main()
