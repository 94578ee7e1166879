"""A gateway's log in a process of its own, killed by tests: says which requests are complete."""

from __future__ import annotations

import itertools
import sys

from gateway_stores import call_of, served_of
from stillhouse.serve.private import Pseudonyms
from stillhouse.serve.tables import open_database
from stillhouse.serve.traffic_log import TrafficLog

if __name__ == "__main__":
    log = TrafficLog(open_database(sys.argv[1]), Pseudonyms(b"0123456789abcdef"), redact=None)
    for number in itertools.count():
        log.offer(call_of(number), served_of(number))
        if number % 20 == 19 and log.flush(10):
            print(number, flush=True)
