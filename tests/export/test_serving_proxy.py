"""The proxy of docs/serving.md before a stub of vLLM's server: both in threads, spoken to over HTTP."""

import base64
import importlib.util
import io
import json
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from idp.beginning import Beginning
from idp.export.serving import PromptChooser
from idp.prompting.repaired import RepairedModel

FILE = Path(__file__).parents[2] / "docs" / "serving_proxy.py"


class Upstream(BaseHTTPRequestHandler):
    """What vLLM's server reads of a completion: it keeps the tensors, and answers with their sizes."""

    def do_GET(self):
        self.answer({"data": [{"id": "mine"}], "asked": self.path})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, asked, self.headers.get("Authorization")))
        if asked["model"] == "another":
            return self.answer({"error": {"message": "no such model"}}, 404)
        assert "prompt" not in asked
        tensors = [
            torch.load(io.BytesIO(base64.b64decode(sent, validate=True)), weights_only=True)
            for sent in asked["prompt_embeds"]
        ]
        self.server.tensors = tensors
        texts = [f"{len(tensor)} rows" for tensor in tensors]
        if asked.get("stream"):
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b'data: {"choices": [{"text": "' + texts[0].encode() + b'"}]}\n\ndata: [DONE]\n\n')
            return None
        choices = [{"index": i, "text": text, "finish_reason": "stop"} for i, text in enumerate(texts)]
        return self.answer({"object": "text_completion", "choices": choices})

    def answer(self, said, status=200):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def served(open_tiny, make_bank):
    """The chooser, the stub, and `ask(path, request)`: status, type and text of the proxy's answer."""
    spec = importlib.util.spec_from_file_location("serving_proxy", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    loaded = open_tiny("llama")
    bank = make_bank(loaded, [3])
    bank.beginning = Beginning(loaded.bos)
    chooser = PromptChooser(RepairedModel(loaded, bank))
    stub = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    stub.seen = []
    proxy = module.Proxy(chooser, f"http://127.0.0.1:{stub.server_port}/")
    for server in (stub, proxy):
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def ask(path, request=None):
        data = json.dumps(request).encode() if request is not None else None
        url = f"http://127.0.0.1:{proxy.server_port}{path}"
        sent = urllib.request.Request(url, data, {"Authorization": "Bearer key"})
        try:
            with urllib.request.urlopen(sent, timeout=60) as reply:
                return reply.status, reply.headers["Content-Type"], reply.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers["Content-Type"], error.read().decode()

    yield chooser, stub, ask
    for server in (proxy, stub):
        server.shutdown()
        server.server_close()


def test_completions_and_chats_arrive_as_embeddings(served):
    chooser, stub, ask = served
    texts = ["The old bridge", "two"]
    status, _, answer = ask("/v1/completions", {"model": "mine", "prompt": texts, "max_tokens": 8, "temperature": 0})
    assert status == 200
    path, asked, key = stub.seen[-1]
    assert (path, asked["max_tokens"], asked["temperature"], key) == ("/v1/completions", 8, 0, "Bearer key")
    expected = [request["prompt_embeds"] for request in chooser.requests(texts, 8)]
    assert all(torch.equal(one, other) for one, other in zip(stub.tensors, expected, strict=True))
    assert [choice["text"] for choice in json.loads(answer)["choices"]] == [f"{len(rows)} rows" for rows in expected]

    status, kind, answer = ask("/v1/completions", {"model": "mine", "prompt": "two", "stream": True})
    assert (status, kind) == (200, "text/event-stream") and answer.endswith("data: [DONE]\n\n")

    messages = [{"role": "user", "content": "two"}]
    chat = {"model": "mine", "messages": messages, "max_completion_tokens": 5}
    assert ask("/v1/chat/completions", chat)[0] == 400  # no template
    template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    chooser.tokenizer.chat_template = template
    status, _, answer = ask("/v1/chat/completions", chat)
    (rows,) = [request["prompt_embeds"] for request in chooser.requests(["<user>two<a>"], 5)]
    assert torch.equal(stub.tensors[0], rows) and stub.seen[-1][1]["max_tokens"] == 5
    (choice,) = json.loads(answer)["choices"]
    assert choice["message"] == {"role": "assistant", "content": f"{len(rows)} rows"} and "text" not in choice
    assert json.loads(answer)["object"] == "chat.completion"


def test_what_is_wrong_is_an_answer(served):
    _, stub, ask = served
    for path, request, status, said in (
        ("/v1/completions", {"model": "mine"}, 400, "prompt: give a text"),
        ("/v1/completions", {"model": "mine", "prompt": [1, 2]}, 400, "texts: give a list of texts"),
        ("/v1/completions", {"model": "mine", "prompt": "a", "max_tokens": 10**6}, 400, "the model's window holds"),
        ("/v1/chat/completions", {"model": "mine", "messages": [], "stream": True}, 400, "chats are not streamed"),
        ("/v1/completions", {"model": "another", "prompt": "a"}, 404, "no such model"),
        ("/v1/embeddings", {"model": "mine", "input": "a"}, 404, "not served here"),
    ):
        found, _, answer = ask(path, request)
        assert found == status and said in json.loads(answer)["error"]["message"], path
    assert json.loads(ask("/v1/models")[2])["asked"] == "/v1/models"
    stub.shutdown()
    stub.server_close()
    status, _, answer = ask("/v1/completions", {"model": "mine", "prompt": "a"})
    assert status == 502 and "127.0.0.1" in json.loads(answer)["error"]["message"]
