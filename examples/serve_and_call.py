"""Start the server on a free port, chat through OpenAI's client, and stop it."""

import socket
import subprocess
import sys
import time

from openai import APIConnectionError, OpenAI

with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
command = [sys.executable, "-m", "lacache", "serve", "--port", str(port), "--budget", "256"]
server = subprocess.Popen(command)
try:
    client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    while True:
        try:
            (model, *_) = client.models.list()
            break
        except APIConnectionError:
            if server.poll() is not None:
                raise SystemExit("the server did not start") from None
            time.sleep(0.5)
    messages = [{"role": "user", "content": "Tell me of the sea in one sentence."}]
    answer = client.chat.completions.create(
        model=model.id, messages=messages, max_tokens=40, stream=True
    )
    for chunk in answer:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()
finally:
    server.terminate()
    server.wait()
