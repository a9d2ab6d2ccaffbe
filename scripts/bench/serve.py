"""How much of a model's speed a server keeps: rows/s over HTTP against the bare batched forward, in one run.

python scripts/bench/serve.py models/digits/0001 [--clients 64] [--seconds 5] [--rows 1]

Server, load generator and operating system share the cores; the forward is one thread, as in the server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from hpctool import files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rows", type=int, default=1, help="rows in a request")
    parser.add_argument("--load", nargs=2, metavar=("URL", "TOKEN"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.load:
        print(json.dumps(asyncio.run(load(args))))
        return
    bare = forward(args.bundle, args.clients * args.rows, args.seconds / 2)
    with tempfile.TemporaryDirectory() as root:
        served = serve(args, Path(root))
    print(f"bare forward, batches of {args.clients * args.rows}: {bare:8.0f} rows/s")
    print(
        f"over HTTP, {args.clients} clients: {served['rows_s']:8.0f} rows/s, p50 {served['p50_ms']:.1f} ms, "
        f"p99 {served['p99_ms']:.1f} ms, {served['failed']} failed"
    )
    print(f"ratio {served['rows_s'] / bare:.3f}")


def forward(bundle: Path, batch: int, seconds: float) -> float:
    """Rows per second of the graph alone, one thread."""
    import torch

    from hpctool.export.verify import load_verified

    torch.set_num_threads(1)
    loaded = load_verified(bundle)
    spec = loaded.signature.inputs[0]
    x = np.ones((batch, *spec.shape[1:]), spec.dtype)
    for _ in range(10):
        loaded(x)
    began, calls = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        loaded(x)
        calls += 1
    return calls * batch / (time.perf_counter() - began)


def serve(args: argparse.Namespace, root: Path) -> dict[str, float]:
    """Start a server of the bundle, load it from another process, and stop it."""
    bundle = args.bundle.resolve()
    overrides = [f"paths.root={root}", f"paths.models={bundle.parents[1]}", "serve.port=0"]
    command = [sys.executable, "-c", "import sys; from hpctool.cli.main import main; sys.exit(main())"]
    ref = f"serve.model={bundle.parent.name}@{bundle.name}"
    server = subprocess.Popen([*command, "serve", ref, *overrides], cwd=root, stdout=subprocess.DEVNULL)
    try:
        while not (found := list(root.glob("runs/*/artifacts/endpoint.json"))):
            if server.poll() is not None:
                sys.exit("the server ended")
            time.sleep(0.1)
        endpoint = files.read_json(found[0])
        token = Path(endpoint["token_file"]).read_text().strip()
        generator = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--load", endpoint["url"], token], capture_output=True, check=True
        )
        return json.loads(generator.stdout)
    finally:
        server.terminate()
        server.wait()


async def load(args: argparse.Namespace) -> dict[str, float]:
    """Every client sends its next request as soon as it has its answer."""
    signature = files.read_json(args.bundle / "signature.json")["inputs"][0]
    shape = [args.rows, *signature["shape"][1:]]
    data = np.random.default_rng(0).integers(0, 256, shape).reshape(-1).tolist()
    tensor = {"name": signature["name"], "shape": shape, "datatype": signature["datatype"], "data": data}
    body = json.dumps({"inputs": [tensor]}).encode()
    url, token = args.load
    host, port = url.removeprefix("http://").split(":")
    path = f"/v2/models/{args.bundle.resolve().parent.name}/infer"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n\r\n"
    message = head.encode() + body
    took, failed = list[float](), 0
    ends = time.perf_counter() + args.seconds

    async def client() -> None:
        nonlocal failed
        reader, writer = await asyncio.open_connection(host, int(port))
        while (began := time.perf_counter()) < ends:
            writer.write(message)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = answer.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            failed += not answer.startswith(b"HTTP/1.1 200")
            took.append(time.perf_counter() - began)
        writer.close()

    await asyncio.gather(*(client() for _ in range(args.clients)))
    p50, p99 = np.quantile(took, [0.5, 0.99]) * 1000
    return {"rows_s": len(took) * args.rows / args.seconds, "p50_ms": p50, "p99_ms": p99, "failed": failed}


if __name__ == "__main__":
    main()
