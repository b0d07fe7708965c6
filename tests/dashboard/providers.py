"""TensorBoard's own data providers and application over a directory of runs, without a browser."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tensorboard.backend.application import TensorBoardWSGI
from tensorboard.backend.event_processing.data_ingester import LocalDataIngester
from tensorboard.data.server_ingester import SubprocessServerDataIngester, get_server_binary
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.util.grpc_util import ChannelCredsType
from werkzeug.test import Client, TestResponse

from lightning_geo.dashboard.loader import GeometryLoader
from lightning_geo.dashboard.metadata import PLUGIN
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.storage.record_file import RecordFile

PREFIX = f"/data/plugin/{PLUGIN}"


def write_run(
    directory: Path, records: Iterable[GeometryRecord], name: str = "geometry", resumed_at: int | None = None
) -> None:
    """Write one session of a run, as if it began a second after the others.

    Event files are read in the order of the second in their names.
    """
    begun = [int(path.name.split(".")[3]) for path in directory.glob("events.*")]
    with TemporaryDirectory() as elsewhere:  # TensorBoard may be reading the directory
        sink = RecordFile(Path(elsewhere), name, resumed_at=resumed_at)
        for record in records:
            sink.write(record)
        sink.close()
        for file in Path(elsewhere).iterdir():
            parts = file.name.split(".")
            parts[3] = str(max([int(parts[3]), *(second + 1 for second in begun)]))
            directory.mkdir(parents=True, exist_ok=True)
            shutil.move(file, directory / ".".join(parts))


def provider_of(kind: str, directory: Path, samples: dict[str, int] | None = None) -> Any:
    """The data provider that TensorBoard makes with ``--load_fast`` (``fast``) or without it (``slow``)."""
    flags = argparse.Namespace(
        samples_per_plugin=dict(samples or {}), purge_orphaned_data=True, max_reload_threads=1,
        reload_multifile=True, reload_multifile_inactive_secs=4000, detect_file_replacement=None,
        logdir=str(directory), logdir_spec="", reload_interval=1, reload_task="thread", generic_data="true",
    )  # fmt: skip
    GeometryLoader().fix_flags(flags)
    if kind == "slow":
        ingester: Any = LocalDataIngester(flags)
    else:
        ingester = SubprocessServerDataIngester(
            get_server_binary(), str(directory), reload_interval=1,
            channel_creds_type=ChannelCredsType.LOCAL, samples_per_plugin=flags.samples_per_plugin,
        )  # fmt: skip
    ingester.start()
    return ingester.data_provider


def client_of(provider: Any) -> Client:
    """A client of TensorBoard's application with our plugin alone."""
    plugin = GeometryLoader().load(TBContext(data_provider=provider))
    return Client(TensorBoardWSGI([plugin], data_provider=provider))


def eventually(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Wait until a condition holds: providers read files in the background."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.05)
    return found


def ask(client: Client, route: str, **query: Any) -> TestResponse:
    """GET a route of the plugin."""
    return client.get(f"{PREFIX}/{route}", query_string=query)
