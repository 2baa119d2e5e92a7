"""The page shows the examples as they are tested, and each is one short file."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PAGE = (HERE.parents[1] / "docs" / "extending.md").read_text()
SHOWN = sorted(file.name for file in HERE.glob("*.py") if not file.name.startswith(("__init__", "conftest", "test_")))


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_is_on_the_page_and_short(name):
    source = (HERE / name).read_text()
    assert source in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(source.splitlines()) <= 60
    [yaml] = HERE.glob(f"conf/**/{name.removesuffix('.py')}.yaml")
    assert yaml.read_text() in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
