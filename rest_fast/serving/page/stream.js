// A session of the server: sound goes in, frames and their sound come out, by WS /v1/avatar/stream.

const HEADER = 36; // bytes, as rest_fast/serving/protocol.py packs them
export const FLAGS = { idle: 1, held: 2, segmentEnd: 4 };

export class Stream {
  // `on` has functions: ready(message), frame({index, pts, epoch, flags, picture: Blob, sound: Int16Array}),
  // said(message) for all other messages, ended(reason).
  constructor(url, avatar, rate, on) {
    this.socket = new WebSocket(url.replace(/^http/, "ws"));
    this.socket.binaryType = "arraybuffer";
    let reason = "";
    this.socket.onopen = () => this.say({ type: "session.start", avatar, sample_rate: rate, format: "jpeg" });
    this.socket.onmessage = ({ data }) => {
      if (typeof data !== "string") return on.frame(read(data));
      const message = JSON.parse(data);
      if (message.type === "error") reason = message.message;
      if (message.type === "session.ready") on.ready(message);
      else on.said(message);
    };
    this.socket.onclose = ({ code }) => on.ended(reason || (code === 1000 ? "" : "The connection ended."));
  }

  get open() {
    return this.socket.readyState === WebSocket.OPEN;
  }

  say(message) {
    if (this.open) this.socket.send(JSON.stringify(message));
  }

  push(samples) {
    if (this.open && samples.length) this.socket.send(samples);
  }

  end(id) {
    this.say({ type: "audio.end", id });
  }

  interrupt() {
    this.say({ type: "interrupt" });
  }

  stop() {
    this.say({ type: "session.stop" });
  }
}

function read(data) {
  const view = new DataView(data);
  const pictureSize = view.getUint32(28, true);
  const sound = data.slice(HEADER + pictureSize);
  return {
    flags: view.getUint8(4),
    epoch: view.getUint32(8, true),
    segment: view.getUint32(12, true),
    index: view.getUint32(16, true),
    pts: view.getFloat64(20, true),
    picture: new Blob([new Uint8Array(data, HEADER, pictureSize)], { type: "image/jpeg" }),
    sound: new Int16Array(sound),
  };
}
