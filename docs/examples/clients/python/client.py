"""Calls a neox-serve gateway with its Python client: a chat, a stream with a deadline, error details.

    python client.py HOST:PORT

NEOX_SERVE_API_KEY holds the API key, if the gateway wants one.
"""

import os
import sys

from neox_serve.client import Client, Reason, ServeError, StreamFinal

address = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:50051"

with Client(address, api_key=os.environ.get("NEOX_SERVE_API_KEY")) as client:
    completion = client.generate("def fibonacci(n):", max_tokens=16, temperature=0, timeout_s=60)
    print("completion:", repr(completion.text))

    for event in client.stream("import os\n", max_tokens=16, temperature=0, timeout_s=60):
        if isinstance(event, StreamFinal):
            print("\nfinal:", event.finishes[0].reason, event.usage.completion_tokens, "tokens")
        else:
            print(event.text, end="")

    # A chat needs a chat template: an adapter's, or the model's.
    try:
        reply = client.generate([{"role": "user", "content": "What does os.listdir do?"}], max_tokens=16, timeout_s=60)
        print("chat:", repr(reply.text))
    except ServeError as error:
        print("chat:", error.message)

    # A field out of range: the error names the field, its value and what is allowed.
    try:
        client.generate("x", temperature=-1)
    except ServeError as error:
        print("error:", error.reason, error.violations[0].field)

    # Text that is ready shortly before the deadline comes back instead of an error.
    partial = client.generate("x", max_tokens=1000, ignore_eos=True, timeout_s=0.4, on_deadline="partial")
    print("partial:", partial.results[0].completions[0].finish.reason)

    # Retries are automatic if the server says when to try again. This is what is left after the last attempt.
    try:
        client.generate("def add(a, b):", max_tokens=16, timeout_s=60)
    except ServeError as error:
        if error.reason in {Reason.OVERLOADED, Reason.QUOTA_EXCEEDED}:
            print(f"try again in {error.retry_after_s} s")
        else:
            raise
