"""Where the tests find the repository, and the parameters that they are of."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
# As params.yaml ships. Who edits that file, as a user does, can run the tests nonetheless.
PARAMS = ROOT / "tests" / "params.yaml"
