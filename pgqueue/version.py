"""Which version of pgqueue this is; asked once, since reading the metadata takes milliseconds."""

from importlib.metadata import version
from typing import Final

__version__: Final = version("pgqueue")
