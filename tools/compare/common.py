"""What the scripts here share: environments, turns, and files of results."""
import contextlib
import fcntl
import json
import os

HEAPS = {
    "default": {},
    # glibc gives blocks of more than 32 MiB back at once and faults them in again at every step
    "kept": {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "200000000000"},
}


def environment(threads, heap="default"):
    env = {k: v for k, v in os.environ.items() if k not in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")}
    # More threads than asked for later would be made at import; fewer could not be made later.
    return env | HEAPS[heap] | {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1",
                                "TOKENIZERS_PARALLELISM": "false"}


@contextlib.contextmanager
def lock(path):
    """Holds a lock file while something is measured, so that several measurements on a machine do not overlap."""
    if not path:
        yield
        return
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def read(path):
    return json.loads(path.read_text()) if path.exists() else {"format": 1, "shapes": {}}


def write(path, results):
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1) + "\n")
    part.replace(path)
