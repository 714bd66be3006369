"""Energy of training by codecarbon, where it is installed; without the network."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

COUNTRY = "CODECARBON_COUNTRY_ISO_CODE"


@contextmanager
def measured_energy(found: dict[str, float]) -> Iterator[None]:
    """
    Measures what runs inside. Codecarbon would ask a server where this machine is; here the country, and with it the
    CO2, comes from the environment alone.

    Args:
        found (`dict[str, float]`):
            Gets `kwh`, and `kg_co2` where `CODECARBON_COUNTRY_ISO_CODE` names a country. Untouched without codecarbon,
            or if what runs inside fails.
    """
    if find_spec("codecarbon") is None:
        yield
        return
    from codecarbon import OfflineEmissionsTracker

    country = os.environ.get(COUNTRY)
    # It tells of itself before it has read its own level.
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    tracker = OfflineEmissionsTracker(
        country_iso_code=country or "USA", output_methods=[], log_level="critical", allow_multiple_runs=True
    )
    tracker.start()
    try:
        yield
    except BaseException:
        tracker.stop()
        raise
    kg_co2 = tracker.stop()
    found["kwh"] = float(tracker.final_emissions_data.energy_consumed)
    if country and kg_co2 is not None:
        found["kg_co2"] = float(kg_co2)
