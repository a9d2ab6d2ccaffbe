"""The types of the serve and score jobs' configurations; the values stand in conf/serve.yaml and conf/score.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from hpctool.launch.schema import JobConfig

#: The file in a serve run's artifacts that says where its server listens, while it does.
ENDPOINT = "endpoint.json"


@dataclass
class Server:
    """What is served, where, and how much at once."""

    #: `digits@production` follows the alias; `digits@0003` stays; `digits` is pinned to the newest version
    model: str = MISSING
    #: the address to listen on; another than 127.0.0.1 is open to the network, and HTTP is not encrypted
    host: str = MISSING
    #: 0 takes a free one; artifacts/endpoint.json in the run's folder says which
    port: int = MISSING
    #: token (`Authorization: Bearer …`) or none
    auth: str = MISSING
    #: a file of yours that holds the token, mode 0600; null makes one in the run's folder
    token_file: str | None = MISSING
    #: the most rows in one forward pass
    max_batch_rows: int = MISSING
    #: what may wait for its turn, in rows and in memory; what comes on top is answered 429
    max_queue_rows: int = MISSING
    max_queue_mb: float = MISSING
    #: the largest request; a larger one is answered 413
    max_body_mb: float = MISSING
    #: seconds between looks at the alias
    poll_s: float = MISSING
    #: seconds that requests under way have to finish when the server is told to stop
    drain_s: float = MISSING


@dataclass
class JournalConfig:
    """How predictions are kept."""

    #: seconds after which an answer is on disk: what a kill can lose
    flush_s: float = MISSING
    #: the most predictions in one segment
    segment_rows: int = MISSING
    #: predictions that may wait for the disk; beyond, requests are answered 503
    max_backlog_rows: int = MISSING


@dataclass
class ServeConfig(JobConfig):
    """`hpctool serve`."""

    serve: Server = MISSING
    journal: JournalConfig = MISSING


@dataclass
class ScoreData:
    """What is scored."""

    #: a dataset version; pinned to its commit
    name: str = MISSING
    #: one split; null for all rows
    split: str | None = MISSING


@dataclass
class Score:
    """With what, and how it is kept."""

    #: a version or alias; pinned to the version
    model: str = MISSING
    #: rows in one forward pass
    batch_rows: int = MISSING
    #: the most rows in one segment of the journal; a killed run repeats at most this many on each rank
    segment_rows: int = MISSING
    #: what the journal says of where the rows come from
    source: str = MISSING


@dataclass
class ScoreConfig(JobConfig):
    """`hpctool score`."""

    data: ScoreData = MISSING
    score: Score = MISSING
