#!/usr/bin/env python3
"""The hospital test: an agent works in a hospital behind Custody, and every patient who appears in
what it said and heard must be in `phi_access` for that call, in that direction, and nobody else.

    tests/hospital/run.py [--custody PROGRAM] [--patients 20] [--each 1000000] [--rounds 30]

needs what `tests/tools.sh hospital` installs. Prints one line of figures as JSON; each difference
goes to stderr. Exit: 0 none, 1 some, 64 usage."""

import argparse
import json
import pathlib
import sys
import tempfile
import time

import agent
import walk
import ward

ROWS = """SELECT c.rpc_id, c.method, a.direction, a.subject_system, a.subject_id, a.subject_status
FROM phi_access a JOIN calls c ON a.call = c.call"""


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--custody", default="custody", help="the executable")
    options.add_argument("--patients", type=int, default=20, help="how many patients to admit")
    options.add_argument("--each", type=int, default=10**6, help="resources of a type of each")
    options.add_argument("--rounds", type=int, default=30, help="how many patients to work on")
    options.add_argument("--seed", type=int, default=42, help="for what is done to whom")
    options = options.parse_args()
    with tempfile.TemporaryDirectory() as folder, ward.Hospital(folder, options.custody) as hospital:
        started = time.monotonic()
        hospital.records()
        resources = hospital.admit(options.patients, options.each)
        patients = hospital.everybody()
        filled = time.monotonic()
        hospital.mcp()
        hospital.custody()
        worker = agent.Agent(hospital.proxy)
        agent.shift(worker, patients, options.rounds, options.seed)
        worked = time.monotonic()
        rows = hospital.sql(ROWS)
        strangers = {"nobody-0000", "nobody-0001"}
        wrong, right = walk.compare(worker.exchanges, rows, patients, strangers)
        calls = hospital.sql("SELECT count(*) AS n FROM calls")[0]["n"]
        sizes = [len(sent) + len(received) for _, _, sent, received in worker.exchanges]
        figures = {
            "patients": len(patients), "resources": resources, "exchanges": len(worker.exchanges),
            "calls": calls, "bytes": sum(sizes), "largest": max(sizes), "accesses": len(rows),
            "right": right, "wrong": len(wrong), "filled_s": round(filled - started, 1),
            "worked_s": round(worked - filled, 1),
        }
        print(json.dumps(figures))
        for line in wrong[:50]:
            print(line, file=sys.stderr)
        return 1 if wrong or calls != len(worker.exchanges) else 0


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parent))
    sys.exit(main())
