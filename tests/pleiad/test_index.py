import json
import os
import subprocess
import sys
from pathlib import Path

from pleiad import index


def test_the_static_index_matches_the_code():
    """In a fresh process, since other tests leave their marks on what is imported."""
    found = subprocess.run(
        [
            sys.executable,
            "-c",
            "import json; from pleiad import index; print(json.dumps(index.build()))",
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert json.loads(found.stdout.splitlines()[-1]) == index.index(), "run `make docs`"
