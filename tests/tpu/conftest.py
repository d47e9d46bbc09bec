"""Lets these tests find the libtpu that `make tpu-check` installs beside the environment."""

import sys
from pathlib import Path

sys.path.append(str(Path(sys.prefix) / "libtpu"))
