"""The dashboard: server-rendered pages over what the gateway, watching and retraining keep."""
