"""The independent walk: who appears in the bytes of an exchange, and whether the record says so.

It knows the hospital's patients beforehand, so it need understand nothing: a patient appears
where one of his ids or record numbers stands, in the bytes themselves or in base64 inside."""

import base64
import binascii
import re

BASE64 = re.compile(rb"[A-Za-z0-9+/]{24,}={0,2}")


def layers(data):
    """The bytes, and every piece of base64 in them, decoded."""
    yield data
    for piece in BASE64.findall(data):
        try:
            inner = base64.b64decode(piece + b"=" * (-len(piece) % 4), validate=True)
        except binascii.Error:
            continue
        yield from layers(inner)


def present(data, patients):
    """The ids of the patients who appear in the bytes."""
    def stands(word):
        return re.compile(rb"(?<![A-Za-z0-9-])" + re.escape(word.encode()) + rb"(?![A-Za-z0-9-])")

    words = {patient: [patient, *(value for _, value in numbers)]
             for patient, numbers in patients.items()}
    text = b"\n".join(layers(data))
    return {patient for patient, names in words.items()
            if any(name.encode() in text and stands(name).search(text) for name in names)}


def named(row, patients):
    """The patient whom a row of `phi_access` names; his id, or what the row says."""
    system, value = row["subject_system"], row["subject_id"]
    if system == "fhir:Patient":
        return value
    for patient, numbers in patients.items():
        for known, number in numbers:
            if value == number and system.removeprefix("urn:uuid:") == known:
                return patient
    return f"{system}|{value}"


def compare(exchanges, rows, patients, strangers):
    """Every difference between bytes and rows, in words; how many rows were right."""
    wrong, right = [], 0
    for rpc_id, method, sent, received in exchanges:
        mine = [row for row in rows if row["rpc_id"] == str(rpc_id)]
        for direction, data in (("sent", sent), ("received", received)):
            seen = present(data, patients)
            told = {named(row, patients) for row in mine
                    if row["direction"] == direction and row["subject_id"]}
            told -= {name for name in told & strangers if name.encode() in data}
            for patient in seen - told:
                wrong.append(f"{rpc_id} {method} {direction}: {patient} is not on record")
            for patient in told - seen:
                wrong.append(f"{rpc_id} {method} {direction}: {patient} is on record and not there")
            right += len(seen & told)
        if method == "tools/call" and not mine:
            wrong.append(f"{rpc_id} {method}: no access on record")
    return wrong, right
