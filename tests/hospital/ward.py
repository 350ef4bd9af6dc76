"""The hospital: a FHIR server filled with Synthea's synthetic patients, an MCP server before it,
and Custody before that. Everything runs on loopback and ends with the `with` block."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

CACHE = pathlib.Path(os.environ.get("CUSTODY_CACHE") or pathlib.Path.home() / ".cache/custody")


def free_port():
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def post(url, body, headers, timeout=600):
    request = urllib.request.Request(url, data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return answer.read()


class Hospital:
    """Processes of one run, each in a group of its own."""

    def __init__(self, folder, custody):
        self.folder, self.binary, self.processes = pathlib.Path(folder), custody, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def start(self, name, command, **options):
        log = open(self.folder / f"{name}.log", "wb")
        options = {"stdout": log, "stderr": log, "stdin": subprocess.DEVNULL} | options
        process = subprocess.Popen(command, start_new_session=True, cwd=self.folder, **options)
        self.processes.append(process)
        return process

    def listening(self, process, port, name):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.05)
        raise SystemExit(f"{name} does not listen; see {self.folder / name}.log")

    def records(self):
        """The FHIR server; its base URL."""
        port = free_port()
        base = f"http://127.0.0.1:{port}/fhir"
        (self.folder / "settings.yaml").write_text(
            f'base_url: {base}\nhost: 127.0.0.1\nport: {port}\ndata_dir: .\n'
            'validation: {inbound: "off"}\nsimulator: {enabled: false}\nlog_inbound: false\n'
        )
        program = CACHE / "hospital/ehr/bin/sekmet"
        command = [program, "serve", "-c", "settings.yaml", "--host", "127.0.0.1", "--port", str(port)]
        self.listening(self.start("records", command), port, "records")
        self.fhir = base

    def mcp(self):
        """The MCP server before it; its URL."""
        port = free_port()
        env = os.environ | {
            "FHIR_SERVER_BASE_URL": self.fhir,
            "FHIR_SERVER_DISABLE_AUTHORIZATION": "true",
            "FHIR_MCP_HOST": "127.0.0.1",
            "FHIR_MCP_PORT": str(port),
            "FHIR_MCP_REQUEST_TIMEOUT": "120",
        }
        program = CACHE / "hospital/mcp/bin/fhir-mcp-server"
        process = self.start("mcp", [program, "--log-level", "ERROR"], env=env)
        self.listening(process, port, "mcp")
        self.ehr = f"http://127.0.0.1:{port}/mcp"

    def custody(self):
        """Custody before that; the URLs of its proxy's route and of its query service."""
        config = self.folder / "custody.toml"
        config.write_text(
            f'[deployment]\nname = "hospital.test"\ndata = "{self.folder}/data"\n'
            '[proxy]\nlisten = "127.0.0.1:0"\naudit_wait_ms = 10000\n'
            '[query]\nlisten = "127.0.0.1:0"\n'
            f'[[server]]\nname = "ehr"\nurl = "{self.ehr}"\nphi = true\n'
        )
        command = [self.binary, "up", "-c", str(config)]
        process = self.start("custody", command, stdout=subprocess.PIPE, text=True)
        said = {}
        for line in process.stdout:
            word, _, url = line.strip().partition(" ")
            said[word] = url.strip()
            if {"proxy", "query"} <= said.keys():
                break
        else:
            raise SystemExit(f"custody does not start; see {self.folder}/custody.log")
        self.proxy, self.query = f"{said['proxy']}/servers/ehr/mcp", said["query"]

    def admit(self, patients, each):
        """Loads the smallest `patients` records, at most `each` resources of a type of each."""
        files = sorted((CACHE / "hospital/data").glob("*.json"), key=lambda f: f.stat().st_size)
        if len(files) < patients:
            raise SystemExit(f"{CACHE}/hospital/data holds {len(files)} records: tests/tools.sh hospital")
        loaded = 0
        for file in files[:patients]:
            bundle = trimmed(json.loads(file.read_bytes()), each)
            loaded += len(bundle["entry"])
            post(self.fhir, json.dumps(bundle).encode(), {"Content-Type": "application/fhir+json"})
        return loaded

    def everybody(self):
        """All patients, straight from the FHIR server: id → its record numbers."""
        with urllib.request.urlopen(f"{self.fhir}/Patient?_count=1000") as answer:
            entries = json.load(answer).get("entry", [])
        numbers = {}
        for patient in (entry["resource"] for entry in entries):
            kinds = [
                (i["system"], i["value"], {c.get("code") for c in i.get("type", {}).get("coding", [])})
                for i in patient.get("identifier", [])
            ]
            numbers[patient["id"]] = {(s, v) for s, v, codes in kinds if "MR" in codes}
        return numbers

    def sql(self, statement):
        headers = {"Content-Type": "application/json", "Accept": "application/x-ndjson"}
        question = json.dumps({"sql": statement}).encode()
        deadline = time.monotonic() + 60
        while True:
            try:
                body = post(f"{self.query}/v1/sql", question, headers)
                return [json.loads(line) for line in body.splitlines() if line]
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)


def trimmed(bundle, each):
    """A Bundle with at most `each` resources of a type, none of which refers to one left out."""
    count, kept = {}, []
    for entry in bundle["entry"]:
        kind = entry["resource"]["resourceType"]
        count[kind] = count.get(kind, 0) + 1
        if count[kind] <= each:
            kept.append(entry)
    while True:
        there = {entry["fullUrl"] for entry in kept}
        gone = {entry["fullUrl"] for entry in bundle["entry"]} - there
        whole = [e for e in kept if not any(url in json.dumps(e["resource"]) for url in gone & urls(e))]
        if len(whole) == len(kept):
            return bundle | {"entry": kept}
        kept = whole


def urls(entry):
    """The URNs that a resource refers to."""
    text = json.dumps(entry["resource"])
    return {part.split('"')[0] for part in text.split('"reference": "')[1:]}
