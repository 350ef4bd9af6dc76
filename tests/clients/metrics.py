"""Reads an OpenMetrics page with the strict parser of the Prometheus project.

stdin: the page. stdout: one JSON object for each sample: family, type, name, labels, value.
Exit 1 with the parser's complaint when the page is not what the standard says.
"""

import json
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families

try:
    for family in text_string_to_metric_families(sys.stdin.read()):
        if not family.documentation:
            raise ValueError(f"{family.name} has no help")
        for sample in family.samples:
            line = {"family": family.name, "type": family.type, "name": sample.name}
            print(json.dumps({**line, "labels": sample.labels, "value": sample.value}))
except ValueError as complaint:
    sys.exit(f"the page is not OpenMetrics: {complaint}")
