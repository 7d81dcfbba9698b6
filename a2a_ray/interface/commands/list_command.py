"""`a2a-ray ls`."""

from __future__ import annotations

from a2a_ray.core.errors import A2AError
from a2a_ray.interface.options import AsJson, Storage
from a2a_ray.runtime.progress import print_status


def list_runs(storage: Storage = "runs", as_json: AsJson = False) -> None:
    """List the runs in a storage folder."""
    from a2a_ray.interface.tables import print_runs
    from a2a_ray.runtime.analyze_run import looped_by_default
    from a2a_ray.store.run import open_run
    from a2a_ray.store.run_folder import run_names

    rows = []
    for name in run_names(storage):
        try:
            run = open_run(name)
            looped = looped_by_default(run)
            rows.append({"run": name, "created": run.manifest["created"], **run.summary(), "looped": looped})
        except (A2AError, KeyError) as error:
            print_status(f"{name}: damaged: {error}")
    print_runs(rows, storage, as_json)
