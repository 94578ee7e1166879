"""The history of the gateway's tables, one module a step; run by `tables.open_database`."""
