"""The gateway: an OpenAI-compatible server that moves live traffic from teacher to student."""
