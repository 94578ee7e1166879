"""From findings to alerts: persistence, quiet time, and storms that become one alert.

Knows findings and what was alerted before; knows no statistics, no file and no network.
"""

from __future__ import annotations

from stillhouse.monitor.records import Alert

__all__ = ["Alert"]
