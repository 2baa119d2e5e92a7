"""An OpenAI-compatible server before vLLM's: each text is put behind its prompt of a bank, and sent on as embeddings.

    vllm serve exports/mine --enable-prompt-embeds --port 8000
    python docs/serving_proxy.py exports/mine http://localhost:8000 8001

Completions go through as they are, streamed ones too. A chat is written out by the tokenizer's template and asked as a
completion; it is not streamed.
"""

from __future__ import annotations

import json
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from idp.errors import UserError
from idp.export.serving import PromptChooser, as_base64

CHAT_ONLY = ("messages", "max_completion_tokens")
OPENAI_TOKENS = 16  # of a completion that does not say how many


class Proxy(ThreadingHTTPServer):
    """Listens on `port` (0: any that is free) and asks the server at `upstream`."""

    def __init__(self, chooser: PromptChooser, upstream: str, port: int = 0):
        super().__init__(("127.0.0.1", port), Handler)
        self.chooser, self.upstream = chooser, upstream.rstrip("/")
        self.one_at_a_time = threading.Lock()  # a model's forward pass is not for several threads

    def completion(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A request for a completion with embeddings in place of its text."""
        texts = asked.pop("prompt", None)
        texts = [texts] if isinstance(texts, str) else texts
        with self.one_at_a_time:
            made = self.chooser.requests(texts or [], asked.get("max_tokens") or OPENAI_TOKENS)
        if not made:
            raise UserError("prompt: give a text or a list of texts")
        return {**asked, "prompt_embeds": [as_base64(request["prompt_embeds"]) for request in made]}

    def chat(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A request for an answer in a chat as one for a completion."""
        if asked.get("stream"):
            raise UserError("stream: chats are not streamed here; ask for a completion")
        tokenizer = self.chooser.tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise UserError("messages: the model's tokenizer has no chat template; ask for a completion")
        text = tokenizer.apply_chat_template(asked["messages"], tokenize=False, add_generation_prompt=True)
        longest = asked.get("max_completion_tokens") or asked.get("max_tokens") or 256
        rest = {name: value for name, value in asked.items() if name not in CHAT_ONLY}
        return self.completion({**rest, "prompt": text, "max_tokens": longest})


class Handler(BaseHTTPRequestHandler):
    """One request: read, rewritten, asked upstream, and the answer sent back as it comes."""

    server: Proxy

    def do_GET(self) -> None:
        self.pass_on(None, self.path)

    def do_POST(self) -> None:
        try:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            is_chat = self.path == "/v1/chat/completions"
            if is_chat:
                asked = self.server.chat(asked)
            elif self.path == "/v1/completions":
                asked = self.server.completion(asked)
            else:
                return self.answer(404, {"error": {"message": f"{self.path}: not served here"}})
        except (UserError, KeyError, TypeError, ValueError) as error:
            return self.answer(400, {"error": {"message": str(error), "type": "invalid_request_error"}})
        self.pass_on(asked, "/v1/completions", as_message if is_chat else None)

    def pass_on(self, asked: dict[str, Any] | None, path: str, change: Any = None) -> None:
        """Asks upstream; `change` turns its JSON into another."""
        headers = {name: self.headers[name] for name in ("Authorization",) if name in self.headers}
        data = None if asked is None else json.dumps(asked).encode()
        headers |= {"Content-Type": "application/json"} if data else {}
        try:
            reply = urllib.request.urlopen(urllib.request.Request(self.server.upstream + path, data, headers))
        except urllib.error.HTTPError as error:  # an answer too, such as that a model is not known
            reply, change = error, None
        except OSError as error:
            return self.answer(502, {"error": {"message": f"{self.server.upstream}: {error}"}})
        with reply:
            if change is not None:
                return self.answer(reply.status, change(json.load(reply)))
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.headers.get("Content-Type", "application/json"))
            self.end_headers()
            while part := reply.read1(65536):  # as it comes, for one that is streamed
                self.wfile.write(part)
                self.wfile.flush()

    def answer(self, status: int, said: dict[str, Any]) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Says nothing of each request."""


def as_message(completion: dict[str, Any]) -> dict[str, Any]:
    """A completion as an answer in a chat."""
    choices = [
        {"message": {"role": "assistant", "content": choice.pop("text")}, **choice} for choice in completion["choices"]
    ]
    return {**completion, "object": "chat.completion", "choices": choices}


def main(place: str, upstream: str, port: str) -> None:
    proxy = Proxy(PromptChooser.open(place), upstream, int(port))
    print(f"http://127.0.0.1:{proxy.server_port}/v1: {', '.join(proxy.chooser.prompts)}", flush=True)
    proxy.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
