"""A wheel carries the configs and the catalogue: it works outside the checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_wheel_lists_and_fits(tmp_path):
    def run(*arguments: object, **kwargs) -> str:
        found = subprocess.run(
            [str(each) for each in arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            **kwargs,
        )
        assert found.returncode == 0, found.stderr[-3000:]
        return found.stdout

    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    # An empty environment but for the libraries: only the wheel's own packages can be found.
    main = f"import sys; sys.path = [{str(site)!r}, *(p for p in sys.path if p != {str(ROOT)!r})]"
    main += "; sys.meta_path = [f for f in sys.meta_path if 'editable' not in repr(f)]"
    main += "; from pleiad.command import main; import pleiad"
    main += f"; assert pleiad.__file__.startswith({str(site)!r}); main(sys.argv[1:])"
    assert "time_series/patchtst_co2" in run(sys.executable, "-c", main, "list", "experiments")
    assert "autoformer" in run(sys.executable, "-c", main, "list", "systems")
    keys = ["--trainer.max_steps=3", "--trainer.enable_progress_bar=false"]
    told = run(sys.executable, "-c", main, "fit", "time_series/patchtst_co2", *keys)
    assert "ETS" in told
    assert (tmp_path / "runs/time_series/patchtst_co2/0/results.json").is_file()
