"""Ask a Dagster webserver over GraphQL whether every code location is loaded; exit code 1 and one sentence if not.

Standard library only: it runs every 30 s, and importing Dagster costs more than a second.
"""

import json
import sys
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

QUERY = """
{ workspaceOrError {
    __typename
    ... on Workspace { locationEntries { name loadStatus
        locationOrLoadError { __typename ... on PythonError { message } } } }
    ... on PythonError { message } } }
"""
TIMEOUT_S = 15


def fault(workspace: dict) -> str | None:
    """Return what is wrong with the answer to QUERY, None if nothing is."""
    if workspace["__typename"] != "Workspace":
        return workspace.get("message", "no workspace")
    for entry in workspace["locationEntries"]:
        location = entry["locationOrLoadError"]
        if location is None or entry["loadStatus"] != "LOADED":
            return f"{entry['name']} is being loaded"
        if location["__typename"] == "PythonError":
            return f"{entry['name']} does not load: {location['message']}"
    return None if workspace["locationEntries"] else "no code location"


def main(address: str) -> int:
    """Print the fault, if there is one; return the exit code."""
    try:
        found = fault(_ask(address))
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        found = f"no answer over GraphQL ({type(error).__name__})"
    if found:
        print(found, file=sys.stderr)
    return 1 if found else 0


def _ask(address: str) -> dict:
    parts = urlsplit(address)
    connection = HTTPConnection(parts.netloc, timeout=TIMEOUT_S)
    try:
        body = json.dumps({"query": QUERY})
        connection.request("POST", parts.path, body, {"Content-Type": "application/json"})
        return json.load(connection.getresponse())["data"]["workspaceOrError"]
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
