"""Starting TorchServe on the configuration in a run folder."""

from __future__ import annotations

import os
from pathlib import Path

from deploy.process import ServerGroup
from deploy.run_folder import RunFolder

FAILED_LOADS = 5  # a worker that died so often while loading will not recover
CONTROL_FOLDER = "METASTABLE_CONTROL_DIR"  # metastable.serving.control.FOLDER, whose import takes seconds


def worker_environment(run: RunFolder, java_home: Path, control: Path) -> dict[str, str]:
    """The environment of the JVM and the workers.

    TS_... is dropped: TS_CONFIG_FILE would silently win over the configuration written here.
    So is PYTHONPATH: TorchServe puts it before the archive, whose own library is the one to serve.

    Args:
        control: folder of the workers' control sockets: the door alone reaches TorchServe.
    """
    dropped = ("TS_", "PYTHONPATH", "METASTABLE_METRICS_PORT")  # the door shows the metrics of all
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return kept | {
        "JAVA_HOME": str(java_home),
        "LOG_LOCATION": str(run.logs),
        "METRICS_LOCATION": str(run.logs),
        "TEMP": str(run.scratch),
        "TMPDIR": str(run.scratch),
        "PROMETHEUS_MULTIPROC_DIR": str(run.metrics),
        "METASTABLE_RUNNER_CACHE": str(run.runner_cache),
        CONTROL_FOLDER: str(control),
    }


def start(run: RunFolder, archive: Path, java_home: Path, control: Path) -> ServerGroup:
    """Start TorchServe on the configuration in the run folder; `control` as in `worker_environment`."""
    arguments = ["--start", "--foreground", "--no-config-snapshots"]
    arguments += ["--ts-config", str(run.config), "--model-store", str(archive.parent)]
    arguments += ["--log-config", str(Path(__file__).with_name("log4j2.xml"))]
    return ServerGroup(
        arguments,
        folder=run.root,
        environment=worker_environment(run, java_home, control),
        console=run.logs / "console.log",
    )
