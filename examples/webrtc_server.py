"""The server as part of your own FastAPI application: python examples/webrtc_server.py --port 8080

Faces are at /faces (the live page, the WebSockets, /faces/offer for WebRTC), and everything else is yours.
"""

import argparse
import contextlib

import uvicorn
from fastapi import FastAPI

import rest_fast
from rest_fast.serving.app import create_app
from rest_fast.serving.run import open_service

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--port", type=int, default=8080)
parser.add_argument("--model", default="demo")
parser.add_argument("--check", action="store_true", help="only see that it could run")
args = parser.parse_args()

service = open_service(rest_fast.load(args.model), sessions=4)


@contextlib.asynccontextmanager
async def lifespan(_):
    yield
    await service.drain()  # an application that is mounted hears nothing of the end


app = FastAPI(lifespan=lifespan)
app.mount("/faces", create_app(service))


@app.get("/")
def hello():
    return {"faces": service.avatars.names(), "sessions": service.engine.capacity()}


if args.check:
    service.engine.close()
    print(hello()["faces"])
else:
    uvicorn.run(app, port=args.port)
