"""An agent on the ward: it reads, searches, updates, and keeps the bytes of what it says and
hears. It speaks MCP 2025-11-25 with nothing but the standard library, so that what it keeps is
what went over the wire."""

import base64
import http.client
import json
import random
import urllib.parse

MRN = "http://hospital.smarthealthit.org"


class Agent:
    def __init__(self, url):
        self.url = urllib.parse.urlsplit(url)
        self.connection = http.client.HTTPConnection(self.url.hostname, self.url.port, timeout=300)
        self.exchanges, self.session = [], None

    def say(self, method, params, answered=True):
        """One message; the result of its answer."""
        message = {"jsonrpc": "2.0", "method": method, "params": params}
        if answered:
            message["id"] = len(self.exchanges) + 1
        sent = json.dumps(message).encode()
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": "2025-11-25",
        }
        if self.session:
            headers["Mcp-Session-Id"] = self.session
        self.connection.request("POST", self.url.path, sent, headers)
        response = self.connection.getresponse()
        received = response.read()
        self.session = response.headers.get("Mcp-Session-Id") or self.session
        if not answered:
            return None
        if response.status != 200:
            raise SystemExit(f"{method}: {response.status} {received[:500]!r}")
        self.exchanges.append((message["id"], method, sent, received))
        if response.headers.get_content_type() == "text/event-stream":
            lines = [line[5:] for line in received.decode().splitlines() if line.startswith("data:")]
            received = lines[-1].encode()
        return json.loads(received)["result"]

    def use(self, tool, **arguments):
        """The content of a tool's answer, each block parsed."""
        result = self.say("tools/call", {"name": tool, "arguments": arguments})
        return [json.loads(block["text"]) for block in result["content"] if block["text"][:1] in "[{"]

    def meet(self):
        hello = {"protocolVersion": "2025-11-25", "capabilities": {},
                 "clientInfo": {"name": "ward-agent", "version": "1"}}
        self.say("initialize", hello)
        self.say("notifications/initialized", {}, answered=False)
        return self.say("tools/list", {})


def found(blocks, kind):
    """The resources of a kind in what came back, however it is wrapped."""
    resources, stack = [], list(blocks)
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if value.get("resourceType") == kind and "id" in value:
                resources.append(value)
            stack.extend(value.values())
        elif isinstance(value, list):
            stack.extend(value)
    return resources


def shift(agent, patients, rounds, seed):
    """Works through a shift; `patients` maps ids to record numbers."""
    luck = random.Random(seed)
    agent.meet()
    agent.use("get_capabilities", type="Patient")
    agent.use("search", type="Patient", searchParam={"_count": "100"})
    agent.use("search", type="Observation", searchParam={"_count": "100"})
    agent.use("search", type="Encounter", searchParam={"_count": "30", "_include": "Encounter:patient"})
    agent.use("read", type="Patient", id="nobody-0000")
    agent.use("search", type="Condition", searchParam={"patient": "nobody-0001"})
    for _ in range(rounds):
        one(agent, luck, luck.choice(sorted(patients)), patients)
    papers(agent, luck, patients)


def one(agent, luck, patient, patients):
    """What is done for one patient."""
    number = sorted(patients[patient])[0][1]
    kind = luck.choice(["Observation", "Condition", "Procedure", "Immunization", "Claim",
                        "DiagnosticReport", "DocumentReference", "ExplanationOfBenefit"])
    agent.use("search", type="Patient", searchParam={"identifier": f"{MRN}|{number}"})
    agent.use("search", type="Patient", searchParam={"_id": patient, "_revinclude": f"{kind}:patient"})
    agent.use("search", type=kind, searchParam={"patient": patient, "_count": "20"})
    few = found(agent.use("search", type=kind, searchParam={"subject": f"Patient/{patient}"}), kind)
    if few:
        agent.use("read", type=kind, id=luck.choice(few)["id"])
    agent.use("read", type="Patient", id=patient, operation="$everything")
    for record in found(agent.use("read", type="Patient", id=patient), "Patient")[:1]:
        record["telecom"] = [{"system": "phone", "value": f"555-01{luck.randrange(100):02}"}]
        agent.use("update", type="Patient", id=patient, payload=record)
    made = {"resourceType": "Observation", "status": "final",
            "code": {"text": "Pain score"}, "subject": {"reference": f"Patient/{patient}"},
            "valueInteger": luck.randrange(11)}
    for observation in found(agent.use("create", type="Observation", payload=made), "Observation")[:1]:
        agent.use("delete", type="Observation", id=observation["id"])


def papers(agent, luck, patients):
    """Documents of other kinds, kept as Binary: they name patients by record number only."""
    numbers = [sorted(patients[p])[0][1] for p in luck.sample(sorted(patients), 2)]
    message = (f"MSH|^~\\&|LAB|HOSP|EHR|HOSP|20260101||ORU^R01|1|P|2.5.1\r"
               f"PID|1||{numbers[0]}^^^&{MRN}&URI^MR||SYNTHETIC^PERSON\rOBX|1|NM|8867-4||72\r")
    document = ('<ClinicalDocument xmlns="urn:hl7-org:v3"><recordTarget><patientRole>'
                f'<id root="{MRN}" extension="{numbers[1]}"/></patientRole></recordTarget>'
                "</ClinicalDocument>")
    for text, media in ((message, "x-application/hl7-v2+er7"), (document, "application/xml")):
        data = base64.b64encode(text.encode()).decode()
        made = {"resourceType": "Binary", "contentType": media, "data": data}
        for binary in found(agent.use("create", type="Binary", payload=made), "Binary")[:1]:
            agent.use("read", type="Binary", id=binary["id"])
