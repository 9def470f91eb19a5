// A session of the server: sound goes in, frames and their sound come out, by WS /v1/avatar/stream.

const HEADER = 36; // bytes, as rest_fast/serving/protocol.py packs them
const FLAGS = { idle: 1, held: 2 };

export class Stream {
  // `on` has functions: ready(), frame({index, epoch, picture: Blob, sound: Int16Array, idle, held, stale}), with
  // `stale` for what was on its way when the visitor interrupted, said(message) for all other messages, ended(reason).
  constructor(url, avatar, rate, on) {
    this.avatar = avatar;
    this.epoch = 0; // interrupts so far; the server counts them, too
    this.last = -1; // the latest frame that came
    this.pushed = false; // whether sound was, since the latest end or interrupt
    this.ends = 0; // segments that were ended and are not yet played
    this.socket = new WebSocket(url.replace(/^http/, "ws"));
    this.socket.binaryType = "arraybuffer";
    this.socket.onopen = () => this.say({ type: "session.start", avatar, sample_rate: rate, format: "jpeg" });
    let reason = "";
    this.socket.onmessage = ({ data }) => {
      if (typeof data !== "string") return on.frame(this.read(data));
      const message = JSON.parse(data);
      if (message.type === "error") reason = message.message;
      if (message.type === "playback.finished" && !message.interrupted) this.ends = Math.max(0, this.ends - 1);
      if (message.type === "session.moved") this.moved(message);
      if (message.type === "session.ready") on.ready();
      else on.said(message);
    };
    this.closed = new Promise((done) => {
      this.socket.onclose = ({ code }) => {
        on.ended(reason || (code === 1000 ? "" : "The connection ended."));
        done();
      };
    });
  }

  get open() {
    return this.socket.readyState === WebSocket.OPEN;
  }

  // Whether there is speech that was not yet played.
  get busy() {
    return this.pushed || this.ends > 0;
  }

  say(message) {
    if (this.open) this.socket.send(JSON.stringify(message));
  }

  push(samples) {
    if (!this.open || !samples.length) return;
    this.socket.send(samples);
    this.pushed = true;
  }

  end(id) {
    if (!this.pushed) return;
    this.say({ type: "audio.end", id });
    this.pushed = false;
    this.ends += 1;
  }

  interrupt() {
    this.say({ type: "interrupt" });
    this.epoch += 1;
    this.pushed = false;
    this.ends = 0;
  }

  // Another server goes on, in the next epoch. Where it begins anew, what was to be said is gone.
  moved({ resumed }) {
    this.epoch += 1;
    if (resumed) return;
    this.pushed = false;
    this.ends = 0;
  }

  // Resolves when the server has let go of the session, so that another one finds its place free.
  async stop() {
    this.say({ type: "session.stop" });
    if (!this.open) this.socket.close();
    await Promise.race([this.closed, new Promise((done) => setTimeout(done, 2000))]);
    this.socket.close();
  }

  read(data) {
    const view = new DataView(data);
    const pictureSize = view.getUint32(28, true);
    const flags = view.getUint8(4);
    const epoch = view.getUint32(8, true);
    this.last = view.getUint32(16, true);
    return {
      index: this.last,
      epoch,
      idle: Boolean(flags & FLAGS.idle),
      held: Boolean(flags & FLAGS.held),
      stale: epoch < this.epoch,
      picture: new Blob([new Uint8Array(data, HEADER, pictureSize)], { type: "image/jpeg" }),
      sound: new Int16Array(data.slice(HEADER + pictureSize)),
    };
  }
}
