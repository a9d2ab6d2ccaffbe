"""Traffic: rows of a dataset sent to a running server over HTTP, each once, whoever is killed meanwhile.

A request's id is `<source>:<uid>:<copy>`; what the journal has answered is not sent again.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpctool import files
from hpctool.errors import OperationError, UnknownName
from hpctool.serve.journal import open_journal

Images = npt.NDArray[np.uint8]

_PATIENCE_S = 60.0


@dataclass(frozen=True)
class Endpoint:
    """A running server: where it listens, what it serves, and the token that lets one in."""

    host: str
    port: int
    model: str
    token: str

    @classmethod
    def read(cls, path: Path) -> Endpoint:
        """From the endpoint.json of a serve run. Raises FileNotFoundError, CorruptError."""
        body = files.read_json(path)
        url = urllib.parse.urlsplit(body["url"])
        token = Path(body["token_file"]).read_text().strip() if body["token_file"] else ""
        return cls(str(url.hostname), int(url.port or 80), str(body["model"]).partition("@")[0], token)


@dataclass
class Sent:
    """What came of sending: how many rows were answered, by which versions, and the newest prediction id of each."""

    rows: int = 0
    by_version: dict[str, int] = field(default_factory=dict)
    prediction_ids: dict[str, str] = field(default_factory=dict)

    def add(self, request: str, answer: dict[str, Any]) -> None:
        """Count the answer to a request of one row."""
        version = str(answer["model_version"])
        self.rows += 1
        self.by_version[version] = self.by_version.get(version, 0) + 1
        self.prediction_ids[request] = str(answer["parameters"]["prediction_ids"][0])


class Client:
    """One connection to the server of a serve run, opened again where it breaks; `path` is its endpoint.json.

    A server that was killed comes back, perhaps on another port: the file is read anew then. Raises OperationError on a
    refusal, or where nobody answers for a minute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.endpoint: Endpoint | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._input_name = ""

    def infer(self, images_NHWC: Images, ids: Sequence[str], source: str, datatype: str = "UINT8") -> dict[str, Any]:
        """The answer to one request that holds all these rows; its id is the first row's."""
        body = {
            "id": ids[0],
            "parameters": {"source": source},
            "inputs": [
                {
                    "name": self.input_name(),
                    "shape": list(images_NHWC.shape),
                    "datatype": datatype,
                    "data": images_NHWC.reshape(-1).tolist(),
                }
            ],
        }
        return self._call("POST", "/infer", body)

    def metadata(self) -> dict[str, Any]:
        """What the server says of its model."""
        return self._call("GET", "")

    def input_name(self) -> str:
        """The name of the model's only input."""
        self._input_name = self._input_name or str(self.metadata()["inputs"][0]["name"])
        return self._input_name

    def _call(self, method: str, verb: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return self._once(method, verb, json.dumps(body) if body is not None else None)
            except (OSError, http.client.HTTPException) as error:
                self._connection = self.endpoint = None
                if time.monotonic() > deadline:
                    raise OperationError(
                        f"No server answers for {self.path} ({type(error).__name__}: {error}). See: hpctool runs list"
                    ) from error
                time.sleep(0.2)

    def _once(self, method: str, verb: str, body: str | None) -> dict[str, Any]:
        endpoint = self.endpoint = self.endpoint or Endpoint.read(self.path)
        if self._connection is None:
            self._connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=30)
        headers = {"Authorization": f"Bearer {endpoint.token}", "Content-Type": "application/json"}
        self._connection.request(method, f"/v2/models/{endpoint.model}{verb}", body, headers)
        response = self._connection.getresponse()
        answer: dict[str, Any] = json.loads(response.read())
        if response.status != 200:
            raise OperationError(f"The server refused a request with {response.status}: {answer.get('error', answer)}")
        return answer


def send(client: Client, images_NHWC: Images, ids: Sequence[str], source: str, done: set[str]) -> Sent:
    """Send the rows whose ids the journal has not answered yet, one request each, as users do."""
    sent = Sent()
    for number, request in _still_to_send(ids, done):
        sent.add(request, client.infer(images_NHWC[number : number + 1], [request], source))
    return sent


def request_ids(source: str, uids: Sequence[str], copies: int) -> list[str]:
    """The ids of the requests for rows that are sent `copies` times."""
    return [f"{source}:{uid}:{copy}" for copy in range(copies) for uid in uids]


def row_of(request: str) -> tuple[str, str]:
    """Source and uid of a request's id, as the journal has it (the row's number in its request follows)."""
    source, uid, _ = request.split(":", 2)
    return source, uid


def answered(folder: Path, source: str) -> set[str]:
    """The ids of the requests of a source that the journal in `folder` has answered."""
    try:
        journal = open_journal(folder.parent, folder.name)
    except UnknownName:
        return set()
    found = journal.read(source=source, columns=["request"]).request
    return {request.rpartition(":")[0] for request in found}


def _still_to_send(ids: Sequence[str], done: set[str]) -> Iterator[tuple[int, str]]:
    for number, request in enumerate(ids):
        if request not in done:
            yield number, request
