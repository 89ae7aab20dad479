"""``python -m examples.service``: simulate and train a shop once, and serve it."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import uvicorn

from .app import create_app, opened
from .demo import add_demo
from .shop import Shop, prepare


def main() -> None:
    """Read the arguments, and serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m examples.service", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-output/service"), help="where the shop is")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine)")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=4, help="recommendations that are found at once")
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    prepare(chosen.out / "shop")
    shop = Shop.open(chosen.out / "shop")
    with opened(shop.bundles, chosen.out / "state", shop.catalogue) as parts:
        app = create_app(parts, threads=chosen.threads)
        add_demo(app, parts, shop)
        uvicorn.run(app, host=chosen.host, port=chosen.port, access_log=False)


if __name__ == "__main__":
    main()
