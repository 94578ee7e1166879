"""Ask a loopback server with bespokelabs-curator; run by its own environment, see ask_throughput.

python peer_curator.py PORT QUERIES CONCURRENCY
"""

import json
import sys
import time

from bespokelabs import curator

port, count, concurrency = map(int, sys.argv[1:])
llm = curator.LLM(
    model_name="gpt-4o-mini",
    backend="openai",
    backend_params={
        "base_url": f"http://127.0.0.1:{port}/v1",
        "api_key": "none",
        "max_requests_per_minute": 10**7,
        "max_tokens_per_minute": 10**10,
        "max_concurrent_requests": concurrency,
        "max_retries": 3,
    },
    generation_params={"max_tokens": 16, "temperature": 0.0},
)
prompts = [f"Is this review good or bad? Text number {i}" for i in range(count)]
started = time.perf_counter()
result = llm(prompts)
seconds = time.perf_counter() - started
rows = getattr(result, "dataset", result)
print(json.dumps({"seconds": seconds, "answers": len(rows)}))
