import subprocess
import sys

import pytest

import pleiad


@pytest.mark.parametrize("name", sorted(pleiad._FACE))
def test_every_name_is_there(name):
    found = getattr(pleiad, name)
    assert found.__name__ == name
    assert name in dir(pleiad)


def test_nothing_is_imported_before_it_is_asked_for():
    code = "import pleiad, sys; sys.exit('torch' in sys.modules or 'core' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'Slimfit'"):
        _ = pleiad.Slimfit
