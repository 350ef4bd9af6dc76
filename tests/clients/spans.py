"""Reads OTLP requests (JSON) with the schema of the OpenTelemetry project.

stdin: one ExportTraceServiceRequest a line. stdout: one JSON object for each span: trace, span,
parent (hexadecimal), name, kind, code, attributes. Exit 1 when a request does not fit the schema:
unknown fields are errors.
"""

import base64
import json
import sys

from google.protobuf import json_format
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status


def plain(value):
    """An attribute's value."""
    return getattr(value, value.WhichOneof("value"))


def ids_as_protobuf_has_them(request):
    """OTLP writes ids in hexadecimal where protobuf's JSON has base64."""
    for resource in request["resourceSpans"]:
        for scope in resource["scopeSpans"]:
            for span in scope["spans"]:
                for key in ("traceId", "spanId", "parentSpanId"):
                    if key in span:
                        span[key] = base64.b64encode(bytes.fromhex(span[key])).decode()
    return request


for line in sys.stdin:
    try:
        request = json_format.ParseDict(
            ids_as_protobuf_has_them(json.loads(line)), ExportTraceServiceRequest()
        )
    except (json_format.ParseError, KeyError, ValueError) as complaint:
        sys.exit(f"this is not OTLP: {complaint}")
    for resource in request.resource_spans:
        about = {a.key: plain(a.value) for a in resource.resource.attributes}
        for scope in resource.scope_spans:
            for span in scope.spans:
                if not span.start_time_unix_nano <= span.end_time_unix_nano:
                    sys.exit(f"{span.name} ends before it begins")
                print(
                    json.dumps(
                        {
                            "service": about["service.name"],
                            "trace": span.trace_id.hex(),
                            "span": span.span_id.hex(),
                            "parent": span.parent_span_id.hex(),
                            "name": span.name,
                            "kind": Span.SpanKind.Name(span.kind),
                            "code": Status.StatusCode.Name(span.status.code),
                            "attributes": {a.key: plain(a.value) for a in span.attributes},
                        }
                    )
                )
